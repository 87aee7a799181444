"""An evaluation as JSON for programs, `runs/<masks>/evaluate.json`.

Keys. An undefined value is null; `<class>` is a class name, and `none` is class 0. `<metric>`: see `evaluate.metrics`.

    classes            the named classes in mask order
    slides, groups     the evaluated slides; slide -> patient (or the slide itself)
    failed             rows of the ledger of stores that could not be evaluated
    scored             glass (given, scored or ignored), slides, pixels, glass_px, glass_share, drawn_px (named classes
                       in the truth), drawn_on_glass_px, answered_on_glass_px, not_predicted_px, ignored_px, left_out;
                       note: all of it in words
    answers            name -> answer; the first of `answer_names` is the evaluated masks, then "empty", "all tissue is
                       <class>", "all tissue of slides with <class>"
      <metric>         per class (iou, dice, precision, recall, ..): <class> -> value, `none` included; pooled (miou,
                       miou_named, frequency_weighted_iou, inverse_log_weighted_iou, accuracy, ..): value
      truth_px, answer_px                                    <class> -> pixels, `none` included
      pixels, not_predicted_px
      confusion                                              [truth][answer], class 0 first
      intervals        <metric> -> [low, high], per class <class> -> [low, high]; {} below 8 groups
      by_group         below 8 groups: group -> <metric> -> value, per class <class> -> value; else {}
    slide_auc          <class> -> value; {} without scores
    slide_auc_intervals                                      <class> -> [low, high]; {} below 8 groups
    slide_truth        where it is known from which slides hold a class
    slide_scores       slide -> <class> -> score, holds
    froc               <class> -> score, interval ([low, high] of the score; null below 8 groups), sensitivity
                       (false positives per slide -> value), lesions, itc, slides, curve (false_positives, sensitivity);
                       {} without scores or detections
    calibration        pixel, slide: <class> -> error, bins (count, mean_score, observed); {} without scores
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wsipipe.evaluate.calibration import Reliability
from wsipipe.evaluate.confusion import Confusion, Floats
from wsipipe.evaluate.evaluation import Evaluation, Interval, Names, SlideLevel, Spread
from wsipipe.evaluate.froc import Froc
from wsipipe.evaluate.metrics import scores_of


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything, ready for JSON; this module's docstring lists the keys."""
    names, level = evaluation.classes, evaluation.slide_level
    pixel = evaluation.pixel_calibration
    coverage = evaluation.coverage
    plain: dict[str, Any] = {
        "classes": list(names),
        "slides": list(evaluation.slides),
        "groups": dict(zip(evaluation.slides, evaluation.groups, strict=False)),
        "failed": evaluation.report.of("failed"),
        "scored": {**asdict(coverage), "glass_share": coverage.glass_share, "note": coverage.note},
        "answer_names": list(evaluation.answers),
        "answers": {n: _answer(c, evaluation.spread.get(n, Spread())) for n, c in evaluation.answers.items()},
        **_slides(level, evaluation),
        "froc": {n: _froc(f) for n, f in (evaluation.froc or {}).items()},
        "calibration": {
            "pixel": _reliabilities(names, pixel) if pixel is not None else {},
            "slide": _reliabilities(names, level.calibration()) if level is not None else {},
        },
    }
    cleaned: dict[str, Any] = _clean(plain)
    return cleaned


def _answer(confusion: Confusion, spread: Spread) -> dict[str, Any]:
    matrix = confusion.matrix
    return {
        **_metrics(confusion.names, scores_of(matrix)),
        "truth_px": _by_class(confusion.names, matrix.sum(1)),
        "answer_px": _by_class(confusion.names, matrix.sum(0)),
        "pixels": confusion.pixels,
        "not_predicted_px": confusion.unpredicted,
        "confusion": matrix,
        "intervals": {s: _interval(confusion.names, ends) for s, ends in spread.intervals.items()},
        "by_group": {group: _metrics(confusion.names, scores) for group, scores in spread.by_group.items()},
    }


def _slides(level: SlideLevel | None, evaluation: Evaluation) -> dict[str, Any]:
    if level is None:
        return {"slide_auc": {}, "slide_auc_intervals": {}, "slide_truth": None, "slide_scores": {}}
    names = evaluation.classes
    return {
        "slide_auc": dict(zip(names, level.auc, strict=True)),
        "slide_auc_intervals": dict(zip(names, np.transpose(level.intervals), strict=True)) if level.intervals else {},
        "slide_truth": level.source,
        "slide_scores": {
            slide: {n: {"score": s, "holds": bool(t)} for n, s, t in zip(names, scores, truth, strict=True)}
            for slide, scores, truth in zip(evaluation.slides, level.scores, level.truth, strict=True)
        },
    }


def _froc(curve: Froc) -> dict[str, Any]:
    return {
        "score": curve.score,
        "interval": curve.interval,
        "sensitivity": {f"{f:g}": s for f, s in curve.at.items()},
        "lesions": curve.lesions,
        "itc": curve.itc,
        "slides": curve.slides,
        "curve": {"false_positives": curve.false_positives, "sensitivity": curve.sensitivity},
    }


def _reliabilities(names: Names, of_class: Sequence[Reliability]) -> dict[str, Any]:
    return {
        n: {"error": r.error, "bins": {"count": r.count, "mean_score": r.mean_score, "observed": r.observed}}
        for n, r in zip(names, of_class, strict=True)
    }


def _metrics(names: Names, scores: Mapping[str, Floats]) -> dict[str, Any]:
    """Per class as a mapping, pooled as a number."""
    return {name: _by_class(names, values) if np.ndim(values) else values for name, values in scores.items()}


def _by_class(names: Names, values: Any) -> dict[str, Any]:
    return dict(zip(("none", *names), values, strict=True))


def _interval(names: Names, ends: Interval) -> Any:
    pairs: Floats = np.stack(ends, -1)
    return _by_class(names, pairs) if pairs.ndim > 1 else pairs


def _clean(value: Any) -> Any:
    """Arrays as lists, NumPy numbers as Python numbers, nan as None."""
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _clean(value.tolist())
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    if isinstance(value, np.generic):
        return _clean(value.item())
    return None if isinstance(value, float) and math.isnan(value) else value
