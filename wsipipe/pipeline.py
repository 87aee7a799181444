"""The whole chain: check everything first, then run the stages one after the other."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.config.options import (
    SECTIONS,
    EvaluateConfig,
    ExportConfig,
    PretrainConfig,
    PseudolabelConfig,
    RunConfig,
    StitchConfig,
    TileConfig,
    TrainConfig,
)
from wsipipe.config.renamed import check_reused
from wsipipe.config.yaml import build, read_yaml
from wsipipe.errors import ConfigError, check
from wsipipe.pseudolabel.registry import NONE, method_names, parse_methods, refinement_names
from wsipipe.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from wsipipe.labels import LabelTable
    from wsipipe.runtime.context import RunContext
    from wsipipe.runtime.ledger import Report
    from wsipipe.slides import SlideFile

Values = Mapping[str, Mapping[str, Any]]
"""Section -> key -> value."""

DEFAULT_FILE = Path("pipeline.yaml")


@dataclass(frozen=True)
class Settings:
    """The options of all stages; `sections` holds the raw parameters per method and refinement."""

    run: RunConfig = field(default_factory=RunConfig)
    tile: TileConfig = field(default_factory=TileConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    pseudolabel: PseudolabelConfig = field(default_factory=PseudolabelConfig)
    segment: TrainConfig = field(default_factory=TrainConfig)
    stitch: StitchConfig = field(default_factory=StitchConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    sections: Values = field(default_factory=dict)

    def context(self, progress: Progress = silent, overwrite: bool = False) -> RunContext:
        """What every stage gets beside its inputs and its own options."""
        from wsipipe.runtime.context import RunContext

        return RunContext(self.run, progress, overwrite)

    def label_table(self) -> LabelTable | None:
        """What an evaluation knows of slides: split, patient, weak label; None without a CSV."""
        from wsipipe.labels import read_labels

        path = Path(self.evaluate.labels or self.pseudolabel.labels)
        if not (self.evaluate.labels or self.evaluate.split or path.is_file()):
            return None
        return read_labels(path, to_fit=False)


def read_settings(file: Path | str | None = None, flags: Values | None = None) -> Settings:
    """Read options from a YAML file (default: ./pipeline.yaml, if it exists); `flags` override the file.

    `flags` maps section -> field -> value; parameters of a method or refinement lie below pseudolabel, under its name.
    Raises ConfigError for unknown keys and wrong values.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    given = read_yaml(Path(file)) if file else {}
    try:
        return _settings(given, flags or {})
    except ConfigError as error:
        raise ConfigError(str(error) if _is_valid(given) else f"{file}: {error}") from None


def _is_valid(given: Values) -> bool:
    """Whether the file alone is in order, so that a mistake is one of the flags."""
    try:
        _settings(given, {})
    except ConfigError:
        return False
    return True


def _settings(given: Values, flags: Values) -> Settings:
    """Merge the values of the file with the flags, and check what needs no other file."""
    nested = (*method_names(), *refinement_names())
    merged = {s: {**given.get(s, {}), **flags.get(s, {})} for s in SECTIONS}
    for section, values in merged.items():
        check_reused(section, values)
    sections = {name: values for name in nested if (values := _parameters(name, given, flags))}
    parts: dict[str, Any] = {s: build(c, merged[s], s, nested) for s, c in SECTIONS.items()}
    parse_methods(parts["pseudolabel"].method)
    refine, known = parts["pseudolabel"].refine, (NONE, *refinement_names())
    check(refine in ("", *known), f"pseudolabel.refine: {refine!r} is not known; choose one of {', '.join(known)}")
    return Settings(sections=sections, **parts)


def _parameters(name: str, given: Values, flags: Values) -> dict[str, Any]:
    """The parameters of a method or refinement; flags override the file."""
    below = given.get("pseudolabel", {}).get(name) or {}
    check(isinstance(below, dict), f"pseudolabel.{name}: expected keys below it, found {below!r}")
    return {**below, **flags.get("pseudolabel", {}).get(name, {})}


def expand(patterns: Sequence[str]) -> list[Path]:
    """Paths of files, folders and glob patterns; ConfigError if a pattern matches nothing."""
    paths: list[Path] = []
    for pattern in patterns:
        is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()
        found = sorted(glob.glob(pattern)) if is_pattern else [pattern]
        check(bool(found), f"{pattern}: matches no file")
        paths += [Path(p) for p in found]
    return paths


def slides_of(patterns: Sequence[str], config: TileConfig) -> dict[str, SlideFile]:
    """Slide id -> slide of files, folders, manifests and patterns, with the user's tissue masks."""
    from wsipipe.slides import find_slides
    from wsipipe.tissue.user_masks import with_masks

    slides = find_slides(expand(patterns))
    return with_masks(slides, config.tissue) if config.tissue else slides


def map_slides(
    paths: Sequence[Path], checkpoint: Path, settings: Settings, context: RunContext
) -> tuple[Report, list[Path]]:
    """Map stores and slides with a trained network; slides are tiled first, as the network's training slides were.

    Stores of the slides go to the folder of the stores. Returns the ledger and the stores that hold the maps.
    """
    from wsipipe.segment import stage as segment

    report, stores = context.report(), [p for p in paths if p.suffix == ".zarr"]
    slides = tuple(str(p) for p in paths if p.suffix != ".zarr")
    if slides:
        report, tiled = _tile_for(checkpoint, slides, settings, context)
        stores += tiled
    if report.exit_code or not stores:
        return report, stores
    mapped, stores = segment.run(stores, segment.SegmentOptions(settings.segment, settings.stitch, checkpoint), context)
    report.merge(mapped)
    return report, stores


def _tile_for(
    checkpoint: Path, slides: Sequence[str], settings: Settings, context: RunContext
) -> tuple[Report, list[Path]]:
    """Tile slides at the resolution, patch size and stain normalisation that a network was trained with."""
    from wsipipe.nn.checkpoint import read_checkpoint
    from wsipipe.tiling import stage as tiling

    network = read_checkpoint(checkpoint)
    options = replace(
        settings.tile,
        mpp=network.mpp,
        patch_px=network.patch_px,
        stride_px=0,
        normalise_stain=network.normalise_stain,
    )
    return tiling.run(slides_of(slides, options), options, replace(context, overwrite=False))


def check_all(settings: Settings) -> dict[str, SlideFile]:
    """Check the options of every stage, the labels and the slides against each other; returns the slides by id."""
    from wsipipe.runtime.device import device

    check(bool(settings.run.slides), "no slides; name them after the command, or as run.slides in pipeline.yaml")
    device(settings.run.device)
    _check_methods(settings)
    _check_encoders(settings)
    _check_names(settings)
    _check_segmenter(settings)
    slides = slides_of(settings.run.slides, settings.tile)
    _check_labels(settings, list(slides))
    return slides


def _check_methods(settings: Settings) -> None:
    """The parameters of every chosen method and its refinement, and that its instances fit a patch."""
    from wsipipe.pseudolabel.options import resolve_params, resolve_refinement
    from wsipipe.pseudolabel.registry import load_method

    for name in parse_methods(settings.pseudolabel.method):
        method = load_method(name)
        params = resolve_params(method, name, settings.sections)
        method.instance_grid(settings.tile.patch_px, params)
        resolve_refinement(settings.pseudolabel, method, settings.sections)


def _check_encoders(settings: Settings) -> None:
    """Encoders are known, and their weights exist and fit."""
    from wsipipe.nn.encoders import check_encoder, chosen_encoder, create_encoder

    for name, section in (("pseudolabel", settings.pseudolabel), ("segment", settings.segment)):
        missing = bool(section.weights) and not Path(section.weights).exists()
        check(not missing, f"{name}.weights: {section.weights}: no such file")
        encoder, path = chosen_encoder(section.encoder, section.weights)
        check_encoder(encoder)
        if path:
            create_encoder(encoder, path)


def _check_names(settings: Settings) -> None:
    """The masks that pseudolabel writes are those that segment trains on, and the maps do not replace them."""
    from wsipipe.store.names import check_name

    masks = [settings.pseudolabel.name] if settings.pseudolabel.name else parse_methods(settings.pseudolabel.method)
    maps = settings.segment.name or settings.segment.architecture
    for name in (*masks, maps):
        check_name(name)
    check(maps not in masks, f"segment.name: {maps!r} is also the name of the pseudo-masks; choose another")
    used, made = settings.segment.masks, ", ".join(masks)
    check(
        used in masks,
        f"segment.masks: {used!r}, but pseudolabel makes {made!r}; set segment.masks to {' or '.join(masks)}",
    )


def _check_segmenter(settings: Settings) -> None:
    """The architecture is known, and takes windows of this size."""
    from wsipipe.nn.encoders import chosen_encoder
    from wsipipe.nn.segmenters import create_segmenter
    from wsipipe.segment.model import check_side

    check_side(settings.stitch.window_px or settings.tile.patch_px)
    encoder, _ = chosen_encoder(settings.segment.encoder, settings.segment.weights)
    create_segmenter(settings.segment.architecture, encoder, 2)


def _check_labels(settings: Settings, slide_ids: Sequence[str]) -> None:
    """Every row of the labels has a slide, and segment has a slide to train on."""
    from wsipipe.labels import match_stores, read_labels
    from wsipipe.segment.slides import train_ids

    config = settings.pseudolabel
    match_stores(read_labels(Path(config.labels), config.classes or None), slide_ids)
    if labels := settings.segment.labels:
        used = train_ids(Path(labels), slide_ids)
        check(not used.isdisjoint(slide_ids), f"segment.labels: {labels}: trains on no slide")


def run_chain(settings: Settings, context: RunContext) -> tuple[Report, list[Path]]:
    """Run tile, pseudolabel and segment with stitching; returns the ledger of all slides and the stores with maps.

    A slide that fails is left out of the later stages; with more failures than `run.max_failed` the chain stops.
    """
    from wsipipe.pseudolabel import stage as pseudolabel
    from wsipipe.segment import stage as segment
    from wsipipe.tiling import stage as tiling

    report, stores = tiling.run(check_all(settings), settings.tile, context)
    if stores and not report.exit_code:
        options = pseudolabel.PseudolabelOptions(settings.pseudolabel, settings.sections, settings.pretrain)
        labelled, stores = pseudolabel.run(stores, options, context)
        report.merge(labelled)
    if stores and not report.exit_code:
        mapped, stores = segment.run(stores, segment.SegmentOptions(settings.segment, settings.stitch), context)
        report.merge(mapped)
    return report, stores
