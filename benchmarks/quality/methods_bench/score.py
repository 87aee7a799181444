"""Scores of an answer over a data set: pixel counts pooled over folds, then Dice and its kin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """What `wsipipe evaluate` says: counts int64 [C, C] (rows truth, columns answer) of every answer by its name.

    own: the name of the judged answer; the others are trivial. dice_ends: its 95 % interval, mean of the classes; None
    below 8 patients. auc: of slides, mean of the classes; None without scores.
    """

    classes: tuple[str, ...]
    own: str
    answers: Mapping[str, Counts]
    dice_ends: tuple[float, float] | None = None
    auc: float | None = None


def read_judged(folder: Path) -> Judged:
    """The JSON that `wsipipe evaluate` wrote into `folder`: the only place that knows what it looks like."""
    data: dict[str, Any] = json.loads((folder / "evaluate.json").read_text())
    own, classes = data["answer_names"][0], tuple(data["classes"])
    ends = data["answers"][own]["intervals"].get("dice")
    auc = [data["slide_auc"].get(c) for c in classes]
    return Judged(
        classes,
        own,
        {name: np.array(a["confusion"], np.int64) for name, a in data["answers"].items()},
        _mean_ends([ends[c] for c in classes]) if ends else None,
        _mean_of_known(auc),
    )


def _mean_ends(ends: Sequence[Sequence[float | None]]) -> tuple[float, float] | None:
    """The mean of several intervals; None where one is not defined."""
    if any(e is None for pair in ends for e in pair):
        return None
    low, high = np.array(ends, np.float64).mean(0)
    return float(low), float(high)


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def pooled(parts: Iterable[Counts]) -> Counts:
    """All pixels together."""
    return np.sum(list(parts), axis=0)


def scores(counts: Counts, only: int = 0) -> dict[str, float]:
    """Dice, IoU, precision and recall as means over the named classes that occur; mIoU (with class 0), accuracy.

    `only` is the one class that an answer is about, if it is: other classes then do not count, as none of it.
    """
    if only:
        keep = np.array([0 if k != only else 1 for k in range(len(counts))])
        two = np.zeros((2, 2), np.int64)
        np.add.at(two, (keep[:, None], keep[None, :]), counts)
        counts = two
    hit, truth, answer = (a.astype(np.float64) for a in (np.diagonal(counts), counts.sum(1), counts.sum(0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        by_class = {
            "dice": 2 * hit / (truth + answer),
            "iou": hit / (truth + answer - hit),
            "precision": hit / answer,
            "recall": hit / truth,
        }
        out = {name: _mean(v[1:][(truth + answer)[1:] > 0]) for name, v in by_class.items()}
        out["miou"] = _mean(by_class["iou"][(truth + answer) > 0])
        out["accuracy"] = float(hit.sum() / truth.sum())
    return out


def mean_scores(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of several scores, name by name, over those that are defined."""
    rows = list(parts)
    return {name: _mean(np.array([r[name] for r in rows])) for name in rows[0]} if rows else {}


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is defined: nan where nothing is. A precision of 0 / 0 is not defined."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
