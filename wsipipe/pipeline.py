"""The whole chain: everything is checked first, then the stages run one after the other."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
from wsipipe.config.yaml import build, read_yaml
from wsipipe.errors import ConfigError, check
from wsipipe.pseudolabel.registry import NONE, chosen, names, refinements
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report

if TYPE_CHECKING:
    from wsipipe.slides import SlideFile

T = TypeVar("T")
Values = Mapping[str, Mapping[str, Any]]
DEFAULT_FILE = Path("pipeline.yaml")


@dataclass(frozen=True)
class Settings:
    """The options of all stages; `sections` holds the raw parameters of each method and refinement that has some."""

    run: RunConfig
    tile: TileConfig
    pretrain: PretrainConfig
    pseudolabel: PseudolabelConfig
    segment: TrainConfig
    stitch: StitchConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    sections: Values


def read_settings(file: Path | None, flags: Values) -> Settings:
    """Options from a YAML file (default: ./pipeline.yaml if there is one) with `flags` over them.

    `flags` maps section -> field -> value; parameters of a method or refinement stand under pseudolabel -> its name.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    given = read_yaml(file) if file else {}
    merged = {s: {**given.get(s, {}), **flags.get(s, {})} for s in SECTIONS}
    nested = (*names(), *refinements())
    sections: dict[str, Mapping[str, Any]] = {}
    for name in nested:
        below = given.get("pseudolabel", {}).get(name) or {}
        check(isinstance(below, dict), f"{file}: pseudolabel.{name}: expected keys below it, found {below!r}")
        section = {**below, **flags.get("pseudolabel", {}).get(name, {})}
        if section:
            sections[name] = section
    try:
        parts: dict[str, Any] = {s: build(c, merged[s], s, nested) for s, c in SECTIONS.items()}
        chosen(parts["pseudolabel"].method)
        refine = parts["pseudolabel"].refine
        known = ("", NONE, *refinements())
        check(refine in known, f"pseudolabel.refine: {refine!r} is not known; choose one of {', '.join(known[1:])}")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}" if file else str(error)) from None
    return Settings(sections=sections, **parts)


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
    from wsipipe.slides import find_slides
    from wsipipe.tissue.user_masks import with_masks

    slides = find_slides(expand(patterns))
    return with_masks(slides, config.tissue) if config.tissue else slides


def map_slides(
    given: Sequence[Path], checkpoint: Path, settings: Settings, context: RunContext
) -> tuple[Report, list[Path]]:
    """Map stores and slides with a trained network; slides are tiled first, as the network's training slides were.

    New stores go into the folder of stores and hold the maps. Returns the ledger and the stores.
    """
    from wsipipe.nn.checkpoint import read_checkpoint
    from wsipipe.segment import stage as segment
    from wsipipe.tiling import stage as tiling

    report, stores = context.report(), [p for p in given if p.suffix == ".zarr"]
    patterns = tuple(str(p) for p in given if p.suffix != ".zarr")
    if patterns:
        network = read_checkpoint(checkpoint)
        patches = replace(settings.tile, patch_px=network.patch_px, stride_px=0)
        tile = replace(patches, mpp=network.mpp, normalise_stain=network.normalise_stain)
        report, tiled = tiling.run(slides_of(patterns, tile), tile, replace(context, overwrite=False))
        stores += tiled
    if report.exit_code or not stores:
        return report, stores
    options = segment.SegmentOptions(settings.segment, settings.stitch, checkpoint)
    mapped, stores = segment.run(stores, options, context)
    report.take(mapped)
    return report, stores


def check_all(settings: Settings) -> dict[str, SlideFile]:
    """Check every stage's options, the labels and the slides against each other; returns the slides by id."""
    from wsipipe.labels import match_stores, read_labels
    from wsipipe.nn.encoders import check_encoder, chosen_encoder, create_encoder
    from wsipipe.nn.segmenters import create_segmenter
    from wsipipe.pseudolabel.registry import load
    from wsipipe.pseudolabel.stage import chosen_refinement
    from wsipipe.runtime.device import device
    from wsipipe.segment.model import check_side
    from wsipipe.segment.slides import train_ids

    if not settings.run.slides:
        raise ConfigError("no slides; name them after the command, or as run.slides in pipeline.yaml")
    device(settings.run.device)
    for name in chosen(settings.pseudolabel.method):
        method = load(name)
        params = build(method.Params, settings.sections.get(name, {}), f"pseudolabel.{name}")
        method.lattice(settings.tile.patch_px, params)
        chosen_refinement(settings.pseudolabel, method, settings.sections)
    for name, section in (("pseudolabel", settings.pseudolabel), ("segment", settings.segment)):
        missing = bool(section.weights) and not Path(section.weights).exists()
        check(not missing, f"{name}.weights: {section.weights}: no such file")
        encoder, path = chosen_encoder(section.encoder, section.weights)
        check_encoder(encoder)
        if path:
            create_encoder(encoder, path)
    _check_names(settings)
    check_side(settings.stitch.window_px or settings.tile.patch_px)
    encoder, _ = chosen_encoder(settings.segment.encoder, settings.segment.weights)
    create_segmenter(settings.segment.architecture, encoder, 2)
    slides = slides_of(settings.run.slides, settings.tile)
    match_stores(read_labels(Path(settings.pseudolabel.labels), settings.pseudolabel.classes or None), list(slides))
    if labels := settings.segment.labels:
        check(not train_ids(Path(labels), slides).isdisjoint(slides), f"segment.labels: {labels}: trains on no slide")
    return slides


def _check_names(settings: Settings) -> None:
    """What pseudolabel makes is what segment trains on, and the two do not take each other's place."""
    from wsipipe.store.names import check_name

    masks = [settings.pseudolabel.name] if settings.pseudolabel.name else chosen(settings.pseudolabel.method)
    maps = settings.segment.name or settings.segment.architecture
    for name in (*masks, maps):
        check_name(name)
    check(maps not in masks, f"segment.name: {maps!r} is the name of the pseudo-masks too; choose another")
    wanted, made = settings.segment.masks, ", ".join(masks)
    check(
        wanted in masks,
        f"segment.masks: {wanted!r}, but pseudolabel makes {made!r}; set segment.masks to {' or '.join(masks)}",
    )


def run_chain(settings: Settings, context: RunContext) -> tuple[Report, list[Path]]:
    """tile, pseudolabel, segment with stitching; returns the ledger of all slides and the stores that hold maps.

    A slide that fails is left out of the later stages; beyond `run.max_failed` the chain stops there.
    """
    from wsipipe.pseudolabel import stage as pseudolabel
    from wsipipe.segment import stage as segment
    from wsipipe.tiling import stage as tiling

    slides = check_all(settings)
    report, stores = tiling.run(slides, settings.tile, context)
    if report.exit_code or not stores:
        return report, stores
    options = pseudolabel.PseudolabelOptions(settings.pseudolabel, settings.sections, settings.pretrain)
    labelled, stores = pseudolabel.run(stores, options, context)
    report.take(labelled)
    if report.exit_code or not stores:
        return report, stores
    mapped, stores = segment.run(stores, segment.SegmentOptions(settings.segment, settings.stitch), context)
    report.take(mapped)
    return report, stores
