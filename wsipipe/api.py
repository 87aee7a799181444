"""wsipipe from Python: open stores, run stages. Everything here is offered as `wsipipe.<name>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from wsipipe.errors import ConfigError
from wsipipe.pipeline import Settings, map_slides, run_chain, slides_of
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress, silent
from wsipipe.store import SlideStore, find_stores

if TYPE_CHECKING:
    from wsipipe.evaluate.evaluation import Evaluation

Stage = Literal["tile", "pretrain", "pseudolabel", "segment", "export", "run"]
"""The stages that write something."""


class StageResult(NamedTuple):
    """What a stage did: the ledger, and the paths that it made or found made from the same inputs."""

    report: Report
    paths: list[Path]


def open_store(path: Path | str) -> SlideStore:
    """Open `<slide_id>.zarr`; StoreError if it is no store of wsipipe.

    Its pixels, masks and scores are read as arrays: `store.read(window)` uint8 [h, w, 3], `store.labels(name).read(
    window)` uint8 [h, w], `store.scores(name).read(window)` uint8 [K, h, w], 255 = 1.0. Windows are in working px.
    """
    return SlideStore(path)


def run_stage(
    stage: Stage,
    inputs: Sequence[Path | str] = (),
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> StageResult:
    """Run a stage as its command does: `wsipipe tile`, `segment --stitch`, and so on.

    inputs: slides for tile and run, stores for the others; default: the slides of the settings, all stores. settings:
    see `read_settings`; default: every option at its default. Results that were made from other inputs are replaced
    only with `overwrite`. Mistakes raise ConfigError before any work; a slide that fails is recorded in the ledger.
    """
    settings = settings or Settings()
    context = settings.context(progress, overwrite)
    if stage == "run":
        slides = tuple(map(str, inputs)) or settings.run.slides
        chosen = replace(settings, run=replace(settings.run, slides=slides))
        return StageResult(*run_chain(chosen, context))
    if stage == "tile":
        from wsipipe.tiling import stage as tiling

        slides = tuple(map(str, inputs)) or settings.run.slides
        return StageResult(*tiling.run(slides_of(slides, settings.tile), settings.tile, context))
    return StageResult(*_on_stores(stage, _stores(inputs, settings), settings, context))


def predict(
    inputs: Sequence[Path | str],
    checkpoint: Path | str,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> StageResult:
    """Map stores, and slides that were never tiled, with a trained network (the JSON of its checkpoint).

    Slides are tiled first, as the network's training slides were. Returns the ledger and the stores with maps.
    """
    settings = settings or Settings()
    context = settings.context(progress, overwrite)
    return StageResult(*map_slides([Path(p) for p in inputs], Path(checkpoint), settings, context))


def evaluate_maps(
    stores: Sequence[Path | str] = (), settings: Settings | None = None, *, progress: Progress = silent
) -> Evaluation:
    """Score the masks `settings.evaluate.masks` of stores (default: all) against `settings.evaluate.truth`.

    Returns one confusion matrix over all pixels, with what follows from it, and the ledger; writes no tables.
    """
    from wsipipe.evaluate import stage
    from wsipipe.evaluate.cohort import EvaluateInputs

    settings = settings or Settings()
    inputs = EvaluateInputs(_stores(stores, settings), settings.label_table())
    return stage.run(inputs, settings.evaluate, settings.context(progress))


def _stores(given: Sequence[Path | str], settings: Settings) -> list[Path]:
    """The stores that are named, or all in the folder of the stores."""
    return [Path(p) for p in given] or find_stores(Path(settings.run.stores))


def _on_stores(
    stage: Stage, stores: Sequence[Path], settings: Settings, context: RunContext
) -> tuple[Report, list[Path]]:
    """Run a stage whose inputs are stores."""
    if stage == "pretrain":
        from wsipipe.pretrain import stage as pretrain

        return pretrain.run(stores, settings.pretrain, context)
    if stage == "pseudolabel":
        from wsipipe.pseudolabel import stage as pseudolabel

        options = pseudolabel.PseudolabelOptions(settings.pseudolabel, settings.sections, settings.pretrain)
        return pseudolabel.run(stores, options, context)
    if stage == "segment":
        from wsipipe.segment import stage as segment

        return segment.run(stores, segment.SegmentOptions(settings.segment, settings.stitch), context)
    if stage == "export":
        from wsipipe.export import stage as export

        return export.run(stores, settings.export, context)
    raise ConfigError(f"stage {stage!r} is not known; choose one of {', '.join(get_args(Stage))}")
