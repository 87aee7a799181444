"""Calibration: whether a score of 0.7 is right in 70 % of the cases (reliability diagram, expected error)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.evaluate.confusion import Floats
from wsipipe.evaluate.slide_level import LEVELS

BINS = 15


@dataclass(frozen=True, eq=False)
class Reliability:
    """The scores of one class in bins of equal width over 0..1: float64 [BINS] each, nan where a bin is empty.

    count: how many scores. mean_score: their mean. observed: the fraction of them that are of the class.
    """

    count: Floats
    mean_score: Floats
    observed: Floats

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): sum_b n_b / n |observed_b - mean_score_b|; nan if n = 0."""
        total = self.count.sum()
        gap = np.abs(self.observed - self.mean_score)
        return float(np.nansum(self.count * gap) / total) if total else float("nan")


def reliability(scores: Floats, counts: Floats, hits: Floats) -> Reliability:
    """From the `counts` of each score (0..1) and how many of these are `hits`, i.e. of the class: [n] each."""
    which = np.minimum((scores * BINS).astype(np.intp), BINS - 1)
    n, total, found = (np.bincount(which, w, BINS).astype(np.float64) for w in (counts, counts * scores, hits))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Reliability(n, total / n, found / n)


def pixel_reliability(counts: NDArray[np.int64]) -> list[Reliability]:
    """Per class, from int64 [K, LEVELS, 2]: tissue px by stored score, of another class and of this class."""
    scores = np.arange(LEVELS) / (LEVELS - 1)
    return [reliability(scores, c.sum(1).astype(np.float64), c[:, 1].astype(np.float64)) for c in counts]


def slide_reliability(scores: Floats, truth: NDArray[np.bool_]) -> Reliability:
    """Of one class, from the score and the truth of every slide; slides without a score are left out."""
    known = ~np.isnan(scores)
    return reliability(scores[known], np.ones(int(known.sum())), truth[known].astype(np.float64))
