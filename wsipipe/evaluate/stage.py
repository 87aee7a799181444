"""The evaluate stage: masks or maps of many stores against the truth, beside the trivial answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.annotations.mask_image import ValueMap, find_masks
from wsipipe.annotations.open import SUFFIXES, open_truth
from wsipipe.config.options import EvaluateConfig
from wsipipe.errors import StoreError, check
from wsipipe.evaluate.bootstrap import (
    LEAST_GROUPS,
    froc_interval,
    group_names,
    interval,
    pixel_intervals,
    resample,
)
from wsipipe.evaluate.calibration import pixel_reliability
from wsipipe.evaluate.cohort import Cohort, EvaluateInputs, select
from wsipipe.evaluate.confusion import Confusion, Floats
from wsipipe.evaluate.coverage import Coverage
from wsipipe.evaluate.detections import SlideDetections, read_detections
from wsipipe.evaluate.evaluation import EMPTY, Evaluation, SlideLevel, Spread, trivial_answers
from wsipipe.evaluate.froc import Detections, Froc, Hits, froc
from wsipipe.evaluate.metrics import scores_of
from wsipipe.evaluate.slide_counts import Names, SlideCounts, count_slide
from wsipipe.geometry import Window
from wsipipe.ranking import auc
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress
from wsipipe.store import SlideStore


def run(inputs: EvaluateInputs, options: EvaluateConfig, context: RunContext) -> Evaluation:
    """Pool `labels/<options.masks>` of every store with a truth into one confusion matrix, and derive all scores.

    The labels give split, patient and weak label of slides; a split needs them and leaves out slides without a row. A
    slide without a truth file is evaluated as negative if its label is empty. A store that fails costs only itself. The
    ledger goes to `<runs>/<masks>/evaluate.csv`. Raises ConfigError if nothing can be evaluated or a truth value has no
    meaning; StoreError if every store failed.
    """
    check(options.truth != "", "evaluate.truth: no truth given; name a folder of masks with --truth")
    report = context.report()
    opened = _open(inputs.stores, report)
    stores, cohort = select(opened, inputs.labels, options.split) if opened or not report.rows else ([], Cohort())
    truths = find_masks(options.truth, [s.slide_id for s in stores], SUFFIXES) if stores else {}
    chosen = [s for s in stores if s.slide_id in truths or cohort.is_negative(s.slide_id)]
    slides = _count(chosen, truths, options, report, context.progress)
    ledger = context.runs / options.masks / "evaluate.csv"
    if not slides:
        report.write(ledger)
        raise StoreError(f"none of {len(report.rows)} stores could be evaluated; the first: {report.rows[0]['reason']}")
    bare = sum(s.score_px is None for s in slides.values())
    left_out = {
        "slides without scores, left out of slide AUC and calibration": bare if bare < len(slides) else 0,
        "slides without a truth file, evaluated as negative, as labelled": len(set(slides) - set(truths)),
        "stores without truth, left out": len(stores) - len(chosen),
        f"stores outside split {options.split}, left out": len(opened) - len(stores),
        "stores that failed": len(report.of("failed")),
    }
    result = _evaluation(slides, cohort, options, context.run.seed, left_out, report)
    _add_slide_scores(report, result)
    report.write(ledger)
    return result


def _open(stores: Sequence[Path], report: Report) -> list[SlideStore]:
    """The stores that can be opened; the others are recorded as failed."""
    opened = []
    for path in stores:
        with report.guard(path.stem):
            opened.append(SlideStore(path))
    return opened


def _count(
    stores: Sequence[SlideStore],
    truths: Mapping[str, Path],
    options: EvaluateConfig,
    report: Report,
    progress: Progress,
) -> dict[str, SlideCounts]:
    """The counts of every store that can be evaluated, by slide id; `report` records each store."""
    slides: dict[str, SlideCounts] = {}
    names: Names | None = None
    given: SlideDetections | None = None
    for i, store in enumerate(stores):
        progress("evaluate", i, len(stores), store.slide_id)
        with report.guard(store.slide_id):
            names = _classes(store, options.masks, names)
            if options.detections and given is None:
                given = read_detections(Path(options.detections), names)
            meaning = ValueMap.parse(options.truth_map, names)
            file = truths.get(store.slide_id)
            read = open_truth(file, store.grid, meaning, store.shown_from_px0) if file else _no_class
            points = None
            if given is not None:
                points = [given.get(store.slide_id, {}).get(n, Detections.none()) for n in names]
            slides[store.slide_id] = counts = count_slide(store, options, names, read, points)
            report.add(store.slide_id, "done", pixels=counts.confusion.pixels)
    progress("evaluate", len(stores), len(stores))
    return slides


def _no_class(window: Window) -> NDArray[np.uint8]:
    """The truth of a negative slide."""
    return np.zeros((window.height_px, window.width_px), np.uint8)


def _classes(store: SlideStore, masks: str, names: Names | None) -> Names:
    """The classes of `labels/<masks>`; StoreError if they are not recorded, or differ from `names` (if given)."""
    found = store.attributes("labels", masks).get("classes")
    if not found:
        raise StoreError(f"{store.path}: labels/{masks} does not record its classes; compute or import it again")
    if names is not None and tuple(found) != names:
        raise StoreError(
            f"{store.path}: labels/{masks} has the classes {', '.join(found)}, other stores have {', '.join(names)}; "
            "compute it again for all stores with the same classes"
        )
    return tuple(found)


def _evaluation(
    slides: Mapping[str, SlideCounts],
    cohort: Cohort,
    options: EvaluateConfig,
    seed: int,
    left_out: Mapping[str, int],
    report: Report,
) -> Evaluation:
    """Everything that follows from the counts."""
    counts = list(slides.values())
    names = counts[0].confusion.names
    groups = group_names(tuple(slides), cohort.patient)
    weights = resample(groups, seed) if len(set(groups)) >= LEAST_GROUPS else None
    total = Confusion.empty(names)
    for one in counts:
        total = total.plus(one.confusion)
    answers, spread = {options.masks: total}, {}
    for name, matrices in _answers(options.masks, names, counts).items():
        answers.setdefault(name, Confusion.of(names, matrices.sum(0)))
        spread[name] = _spread(matrices, groups, weights)
    hits = [c.hits for c in counts if c.hits is not None]
    with_scores = [c.score_px for c in counts if c.score_px is not None]
    return Evaluation(
        names,
        answers,
        tuple(slides),
        Coverage.of(counts, total, options.glass, left_out),
        report,
        groups,
        spread,
        _slide_level(slides, cohort, options.slide_top, weights) if with_scores else None,
        pixel_reliability(np.sum(with_scores, 0)[..., :2]) if with_scores else None,
        {n: _froc([h[k] for h in hits], weights) for k, n in enumerate(names)} if len(hits) == len(counts) else None,
        {s: dict(zip(names, c.detections, strict=True)) for s, c in slides.items() if c.detections is not None},
    )


def _answers(masks: str, names: Names, counts: Sequence[SlideCounts]) -> dict[str, NDArray[np.int64]]:
    """Of every answer, the confusion of each slide over the same pixels: int64 [slides, C, C]."""
    tissue = np.stack([c.tissue for c in counts])
    off, on = tissue[..., 0], tissue[..., 1]
    empty = _column(0, off + on)
    answers = {masks: np.stack([c.confusion.matrix for c in counts]), EMPTY: empty}
    for k, name in enumerate(names, start=1):
        every = _column(0, off) + _column(k, on)
        holds = tissue[:, k].sum(-1) > 0
        positive = np.where(holds[:, None, None], every, empty)
        answers.update(zip(trivial_answers(name), (every, positive), strict=True))
    return answers


def _column(k: int, truth_px: NDArray[np.int64]) -> NDArray[np.int64]:
    """The confusion of pixels that are all predicted as class k: [slides, C] -> [slides, C, C]."""
    out = np.zeros((*truth_px.shape, truth_px.shape[-1]), np.int64)
    out[..., k] = truth_px
    return out


def _spread(matrices: NDArray[np.int64], groups: Names, weights: Floats | None) -> Spread:
    if weights is not None:
        return Spread(intervals=pixel_intervals(matrices, weights))
    rows = {g: [i for i, of in enumerate(groups) if of == g] for g in dict.fromkeys(groups)}
    return Spread(by_group={g: scores_of(matrices[i].sum(0)) for g, i in rows.items()})


def _froc(hits: Sequence[Hits], weights: Floats | None) -> Froc:
    return replace(froc(hits), interval=None if weights is None else froc_interval(hits, weights))


def _slide_level(slides: Mapping[str, SlideCounts], cohort: Cohort, top: float, weights: Floats | None) -> SlideLevel:
    names = next(iter(slides.values())).confusion.names
    scores = np.stack([c.slide_scores(top) for c in slides.values()])
    truth, source = _slide_truth(slides, cohort, names)
    known = ~np.isnan(scores).any(1)
    value = np.array([float(auc(scores[known, k], truth[known, k])) for k in range(len(names))])
    ends = None
    if weights is not None:
        drawn = np.stack([auc(scores[known, k], truth[known, k], weights[:, known]) for k in range(len(names))], 1)
        ends = interval(drawn)
    return SlideLevel(scores, truth, value, ends, source)


def _slide_truth(slides: Mapping[str, SlideCounts], cohort: Cohort, names: Names) -> tuple[NDArray[np.bool_], str]:
    """Whether each slide holds each class, bool [slides, K], by its label or else by its truth mask; and by which."""
    labelled = {(slide, n): cohort.holds(slide, n) for slide in slides for n in names}
    truth = np.array(
        [
            [bool(c.truth_px[k] > 0 if labelled[s, n] is None else labelled[s, n]) for k, n in enumerate(names, 1)]
            for s, c in slides.items()
        ]
    )
    by_label = sum(holds is not None for holds in labelled.values())
    return truth, "labels" if by_label == truth.size else "labels, else truth masks" if by_label else "truth masks"


def _add_slide_scores(report: Report, result: Evaluation) -> None:
    """Add the score and the truth of every slide to its row of the ledger."""
    level = result.slide_level
    if level is None:
        return
    rows = {r["item"]: r for r in report.rows}
    for slide, scores, truth in zip(result.slides, level.scores, level.truth, strict=True):
        for name, score, holds in zip(result.classes, scores, truth, strict=True):
            rows[slide] |= {f"score {name}": f"{score:.4f}", f"holds {name}": str(int(holds))}
