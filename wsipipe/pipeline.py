"""The whole chain: everything is checked first, then the stages run one after the other."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsipipe.config import (
    SECTIONS,
    EvaluateConfig,
    PretrainConfig,
    PseudolabelConfig,
    RunConfig,
    SegmentConfig,
    TileConfig,
    build,
    check,
    read_yaml,
)
from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.registry import names
from wsipipe.runtime import Progress, Report, silent

if TYPE_CHECKING:
    from wsipipe.slides import SlideFile

T = TypeVar("T")
Values = Mapping[str, Mapping[str, Any]]
DEFAULT_FILE = Path("pipeline.yaml")


@dataclass(frozen=True)
class Settings:
    """The options of all stages; `methods` holds the raw section of each method that has one."""

    run: RunConfig
    tile: TileConfig
    pretrain: PretrainConfig
    pseudolabel: PseudolabelConfig
    segment: SegmentConfig
    evaluate: EvaluateConfig
    methods: Mapping[str, Mapping[str, Any]]

    def method_values(self) -> Mapping[str, Any]:
        """Parameters given for the chosen method."""
        return self.methods.get(self.pseudolabel.method, {})


def read_settings(file: Path | None, flags: Values) -> Settings:
    """Options from a YAML file (default: ./pipeline.yaml if there is one) with `flags` over them.

    `flags` maps section -> field -> value; parameters of a method stand under pseudolabel -> method name -> mapping.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    given = read_yaml(file) if file else {}
    merged = {s: {**given.get(s, {}), **flags.get(s, {})} for s in SECTIONS}
    methods: dict[str, Mapping[str, Any]] = {}
    for name in names():
        below = given.get("pseudolabel", {}).get(name) or {}
        check(isinstance(below, dict), f"{file}: pseudolabel.{name}: expected keys below it, found {below!r}")
        section = {**below, **flags.get("pseudolabel", {}).get(name, {})}
        if section:
            methods[name] = section
    try:
        parts: dict[str, Any] = {s: build(c, merged[s], s, tuple(names())) for s, c in SECTIONS.items()}
        method = parts["pseudolabel"].method
        check(method in names(), f"pseudolabel.method: {method!r} is not known; choose one of {', '.join(names())}")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}" if file else str(error)) from None
    return Settings(methods=methods, **parts)


def expand(patterns: tuple[str, ...]) -> list[Path]:
    """Paths of files, folders and patterns; a pattern that matches nothing is an error."""
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not Path(pattern).exists() else [pattern]
        if not found:
            raise ConfigError(f"{pattern}: matches no file")
        paths += [Path(p) for p in found]
    return paths


def slides_of(patterns: tuple[str, ...], config: TileConfig) -> dict[str, SlideFile]:
    """Slide id -> slide for files, folders, manifests and patterns, with the tissue masks that the user gives."""
    from wsipipe.slides import find_slides, with_masks

    slides = find_slides(expand(patterns))
    return with_masks(slides, config.tissue) if config.tissue else slides


def check_all(settings: Settings) -> dict[str, SlideFile]:
    """Check every stage's options, the labels and the slides against each other; returns the slides by id."""
    from wsipipe.labels import match_stores, read_labels
    from wsipipe.nn.encoders import check_encoder, chosen_encoder, create_encoder
    from wsipipe.nn.segmenters import create_segmenter
    from wsipipe.pseudolabel.registry import load
    from wsipipe.runtime import device
    from wsipipe.segment.train import check_side, train_ids

    if not settings.run.slides:
        raise ConfigError("no slides; name them after the command, or as run.slides in pipeline.yaml")
    device(settings.run.device)
    method = load(settings.pseudolabel.method)
    params = build(method.Params, settings.method_values(), f"pseudolabel.{settings.pseudolabel.method}")
    method.lattice(settings.tile.patch_px, params)
    for name, section in (("pseudolabel", settings.pseudolabel), ("segment", settings.segment)):
        missing = bool(section.weights) and not Path(section.weights).exists()
        check(not missing, f"{name}.weights: {section.weights}: no such file")
        encoder, path = chosen_encoder(section.encoder, section.weights)
        check_encoder(encoder)
        if path:
            create_encoder(encoder, path)
    _check_names(settings)
    check_side(settings.segment.window_px or settings.tile.patch_px)
    encoder, _ = chosen_encoder(settings.segment.encoder, settings.segment.weights)
    create_segmenter(settings.segment.architecture, encoder, 2)
    slides = slides_of(settings.run.slides, settings.tile)
    match_stores(read_labels(Path(settings.pseudolabel.labels), settings.pseudolabel.classes or None), list(slides))
    if splits := settings.segment.splits:
        check(not train_ids(Path(splits), slides).isdisjoint(slides), f"segment.splits: {splits}: trains on no slide")
    return slides


def _check_names(settings: Settings) -> None:
    """What pseudolabel makes is what segment trains on, and the two do not take each other's place."""
    from wsipipe.store.slide_store import check_name

    masks = settings.pseudolabel.name or settings.pseudolabel.method
    maps = settings.segment.name or settings.segment.architecture
    for name in (masks, maps):
        check_name(name)
    check(masks != maps, f"segment.name: {maps!r} is the name of the pseudo-masks too; choose another")
    check(
        settings.segment.labels == masks,
        f"segment.labels: {settings.segment.labels!r}, but pseudolabel makes {masks!r}; set segment.labels to {masks}",
    )


def run_chain(settings: Settings, progress: Progress = silent, overwrite: bool = False) -> tuple[Report, list[Path]]:
    """tile, pseudolabel, segment with stitching; returns the ledger of all slides and the stores that hold maps.

    A slide that fails is left out of the later stages; beyond `run.max_failed` the chain stops there.
    """
    from wsipipe.pseudolabel.label import pseudolabel
    from wsipipe.segment.segment import segment
    from wsipipe.tiling.tile import tile_slides

    slides = check_all(settings)
    report, stores = tile_slides(slides, settings.tile, settings.run, progress, overwrite)
    if report.exit_code or not stores:
        return report, stores
    labelled, stores = pseudolabel(
        stores, settings.pseudolabel, settings.method_values(), settings.run, progress, overwrite, settings.pretrain
    )
    _take_failures(report, labelled)
    if report.exit_code or not stores:
        return report, stores
    mapped, stores = segment(
        stores, settings.segment, settings.run, stitch=True, progress=progress, overwrite=overwrite
    )
    _take_failures(report, mapped)
    return report, stores


def _take_failures(report: Report, later: Report) -> None:
    """A slide that failed in a later stage has failed; each slide keeps one row, so that shares count slides."""
    failed = {r["item"]: r for r in later.of("failed")}
    report.rows = [failed.get(r["item"], r) for r in report.rows]
