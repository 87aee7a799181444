"""Whether a score of 0.7 is right seven times in ten: reliability in bins and the error made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.evaluate.metrics import Floats
from wsipipe.evaluate.slide_level import LEVELS

BINS = 15


@dataclass(frozen=True, eq=False)
class Reliability:
    """Of one class, by bins of equal width over 0..1: `count` of scores, their mean `said`, the share `found` true.

    float64 [BINS] each; nan where a bin is empty.
    """

    count: Floats
    said: Floats
    found: Floats

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): sum_b n_b / n |found_b - said_b|; nan without scores."""
        total = self.count.sum()
        return float(np.nansum(self.count * np.abs(self.found - self.said)) / total) if total else float("nan")


def reliability(scores: Floats, counts: Floats, hits: Floats) -> Reliability:
    """From `counts` of each score (0..1) and how many of these are `hits`, i.e. of the class: [n] each."""
    which = np.minimum((scores * BINS).astype(np.intp), BINS - 1)
    n, said, found = (np.bincount(which, w, BINS).astype(np.float64) for w in (counts, counts * scores, hits))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Reliability(n, said / n, found / n)


def pixel_reliability(counts: NDArray[np.int64]) -> list[Reliability]:
    """Of each class, from int64 [K, LEVELS, 2]: px of the tissue by stored score, of another class and of this one."""
    scores = np.arange(LEVELS) / (LEVELS - 1)
    return [reliability(scores, c.sum(1).astype(np.float64), c[:, 1].astype(np.float64)) for c in counts]


def slide_reliability(scores: Floats, truth: NDArray[np.bool_]) -> Reliability:
    """Of one class, from the score and the truth of every slide; slides without a score are left out."""
    known = ~np.isnan(scores)
    return reliability(scores[known], np.ones(int(known.sum())), truth[known].astype(np.float64))
