"""Judge the maps of many stores against their truth, with the trivial answers beside them."""

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
    pixel_scores,
    resample,
)
from wsipipe.evaluate.calibration import pixel_reliability
from wsipipe.evaluate.cohort import Cohort, EvaluateInputs, select
from wsipipe.evaluate.coverage import Scored
from wsipipe.evaluate.detections import Found, read_detections
from wsipipe.evaluate.froc import Detections, Froc, Hits, froc
from wsipipe.evaluate.metrics import Confusion, Floats
from wsipipe.evaluate.result import EMPTY, Evaluation, SlideLevel, Spread, trivial_answers
from wsipipe.evaluate.slide_counts import Names, Tally, tally
from wsipipe.geometry import Window
from wsipipe.ranking import auc
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress
from wsipipe.store import SlideStore


def run(inputs: EvaluateInputs, config: EvaluateConfig, context: RunContext) -> Evaluation:
    """Pool `labels/<config.masks>` of every store that has a truth into one confusion matrix, and all that it gives.

    The labels say split, patient and weak label of slides; they are needed if `config.split` is given, and slides that
    they do not name are then left out. A slide without a truth file whose label is empty is taken to hold no class. A
    store that cannot be judged costs only itself and is recorded as failed. The ledger goes to
    `<runs>/<config.masks>/evaluate.csv`. Raises ConfigError if there is nothing to judge, or a truth value without
    a meaning; StoreError if every store failed.
    """
    check(config.truth != "", "evaluate.truth: no truth given; name a folder of masks with --truth")
    report = context.report()
    opened = _open(inputs.stores, report)
    stores, cohort = select(opened, inputs.labels, config.split) if opened or not report.rows else ([], Cohort())
    truths = find_masks(config.truth, [s.slide_id for s in stores], SUFFIXES) if stores else {}
    chosen = [s for s in stores if s.slide_id in truths or cohort.is_negative(s.slide_id)]
    tallies = _tallies(chosen, truths, config, report, context.progress)
    if not tallies:
        report.write(context.runs / config.masks / "evaluate.csv")
        raise StoreError(f"none of {len(report.rows)} stores could be judged; the first: {report.rows[0]['reason']}")
    bare = sum(t.score_px is None for t in tallies.values())
    counts = {
        "slides without scores, left out of slide AUC and calibration": bare if bare < len(tallies) else 0,
        "slides without a truth file, taken for empty as their label is": len(set(tallies) - set(truths)),
        "stores without truth, left out": len(stores) - len(chosen),
        f"stores outside split {config.split}, left out": len(opened) - len(stores),
        "stores that failed": len(report.of("failed")),
    }
    result = _evaluation(tallies, cohort, config, context.run.seed, counts, report)
    _note_slides(report, result)
    report.write(context.runs / config.masks / "evaluate.csv")
    return result


def _open(stores: Sequence[Path], report: Report) -> list[SlideStore]:
    """The stores that can be opened; the others are recorded as failed."""
    opened = []
    for path in stores:
        with report.guard(path.stem):
            opened.append(SlideStore(path))
    return opened


def _tallies(
    stores: Sequence[SlideStore],
    truths: Mapping[str, Path],
    config: EvaluateConfig,
    report: Report,
    progress: Progress,
) -> dict[str, Tally]:
    """The counts of every store that can be judged, by slide id; what became of each goes to `report`."""
    tallies: dict[str, Tally] = {}
    names: Names | None = None
    given: Found | None = None
    for i, store in enumerate(stores):
        progress("evaluate", i, len(stores), store.slide_id)
        with report.guard(store.slide_id):
            names = _agreed(store, config.masks, names)
            if config.detections and given is None:
                given = read_detections(Path(config.detections), names)
            meaning = ValueMap.parse(config.truth_map, names)
            file = truths.get(store.slide_id)
            read = open_truth(file, store.grid, meaning, store.shown_from_px0) if file else _empty
            points = None
            if given is not None:
                points = [given.get(store.slide_id, {}).get(n, Detections.none()) for n in names]
            tallies[store.slide_id] = counted = tally(store, config, names, read, points)
            report.add(store.slide_id, "done", pixels=counted.confusion.pixels)
    progress("evaluate", len(stores), len(stores))
    return tallies


def _empty(window: Window) -> NDArray[np.uint8]:
    """The truth of a slide that holds no class."""
    return np.zeros((window.height_px, window.width_px), np.uint8)


def _agreed(store: SlideStore, labels: str, names: Names | None) -> Names:
    """The named classes of `labels/<labels>`; StoreError if they are not said or differ from those of the others."""
    found = store.attributes("labels", labels).get("classes")
    if not found:
        raise StoreError(f"{store.path}: labels/{labels} does not say its classes; compute or import it again")
    if names is not None and tuple(found) != names:
        raise StoreError(
            f"{store.path}: labels/{labels} has the classes {', '.join(found)}, other stores have {', '.join(names)}; "
            "compute it again for all stores with the same classes"
        )
    return tuple(found)


def _evaluation(
    tallies: Mapping[str, Tally],
    cohort: Cohort,
    config: EvaluateConfig,
    seed: int,
    counts: Mapping[str, int],
    report: Report,
) -> Evaluation:
    """Everything that is made of the counts."""
    slides, every = tuple(tallies), list(tallies.values())
    names = every[0].confusion.names
    groups = group_names(slides, cohort.patient)
    weights = resample(groups, seed) if len(set(groups)) >= LEAST_GROUPS else None
    total = Confusion.empty(names)
    for one in every:
        total = total.plus(one.confusion)
    answers, spread = {config.masks: total}, {}
    for name, matrices in _answers(config.masks, names, every).items():
        answers.setdefault(name, Confusion.of(names, matrices.sum(0)))
        spread[name] = _spread(matrices, groups, weights)
    hits = [t.hits for t in every if t.hits is not None]
    with_scores = [t.score_px for t in every if t.score_px is not None]
    return Evaluation(
        names,
        answers,
        slides,
        Scored.of(every, total, config.glass, counts),
        report,
        groups,
        spread,
        _slide_level(tallies, cohort, config.slide_top, weights) if with_scores else None,
        pixel_reliability(np.sum(with_scores, 0)[..., :2]) if with_scores else None,
        {n: _froc([h[k] for h in hits], weights) for k, n in enumerate(names)} if len(hits) == len(every) else None,
        {s: dict(zip(names, t.detections, strict=True)) for s, t in tallies.items() if t.detections is not None},
    )


def _answers(labels: str, names: Names, tallies: Sequence[Tally]) -> dict[str, NDArray[np.int64]]:
    """Of every answer, the confusion of each slide over the same pixels: int64 [slides, C, C]."""
    tissue = np.stack([t.tissue for t in tallies])
    off, on = tissue[..., 0], tissue[..., 1]
    empty = _column(0, off + on)
    answers = {labels: np.stack([t.confusion.matrix for t in tallies]), EMPTY: empty}
    for k, name in enumerate(names, start=1):
        every = _column(0, off) + _column(k, on)
        holds = tissue[:, k].sum(-1) > 0
        positive = np.where(holds[:, None, None], every, empty)
        answers.update(zip(trivial_answers(name), (every, positive), strict=True))
    return answers


def _column(k: int, truth_px: NDArray[np.int64]) -> NDArray[np.int64]:
    """The confusion of pixels that are all answered with class k: [slides, C] -> [slides, C, C]."""
    out = np.zeros((*truth_px.shape, truth_px.shape[-1]), np.int64)
    out[..., k] = truth_px
    return out


def _spread(matrices: NDArray[np.int64], groups: Names, weights: Floats | None) -> Spread:
    if weights is not None:
        return Spread(intervals=pixel_intervals(matrices, weights))
    rows = {g: [i for i, of in enumerate(groups) if of == g] for g in dict.fromkeys(groups)}
    return Spread(by_group={g: pixel_scores(matrices[i].sum(0)) for g, i in rows.items()})


def _froc(hits: Sequence[Hits], weights: Floats | None) -> Froc:
    return replace(froc(hits), interval=None if weights is None else froc_interval(hits, weights))


def _slide_level(tallies: Mapping[str, Tally], cohort: Cohort, top: float, weights: Floats | None) -> SlideLevel:
    names = next(iter(tallies.values())).confusion.names
    scores = np.stack([t.slide_scores(top) for t in tallies.values()])
    said = {(slide, n): cohort.holds(slide, n) for slide in tallies for n in names}
    truth = np.array(
        [
            [bool(t.truth_px[k] > 0 if said[slide, n] is None else said[slide, n]) for k, n in enumerate(names, 1)]
            for slide, t in tallies.items()
        ]
    )
    by_label = sum(s is not None for s in said.values())
    source = "labels" if by_label == truth.size else "labels, else truth masks" if by_label else "truth masks"
    known = ~np.isnan(scores).any(1)
    value = np.array([float(auc(scores[known, k], truth[known, k])) for k in range(len(names))])
    ends = None
    if weights is not None:
        drawn_auc = np.stack([auc(scores[known, k], truth[known, k], weights[:, known]) for k in range(len(names))], 1)
        ends = interval(drawn_auc)
    return SlideLevel(scores, truth, value, ends, source)


def _note_slides(report: Report, result: Evaluation) -> None:
    """Put the score and the truth of every slide into the ledger."""
    level = result.slide_level
    if level is None:
        return
    rows = {r["item"]: r for r in report.rows}
    for slide, scores, truth in zip(result.slides, level.scores, level.truth, strict=True):
        for name, score, holds in zip(result.classes, scores, truth, strict=True):
            rows[slide] |= {f"score {name}": f"{score:.4f}", f"holds {name}": str(int(holds))}
