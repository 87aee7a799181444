"""Confidence intervals by bootstrap over groups of slides (patients): how metrics vary with the sample of patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsipipe.evaluate.confusion import Floats
from wsipipe.evaluate.froc import Hits, froc
from wsipipe.evaluate.metrics import scores_of

RESAMPLES = 2000

LEAST_GROUPS = 8
"""With fewer patients an interval would claim more than they show: their values are listed instead."""

ENDS = (0.025, 0.975)


def group_names(slides: Sequence[str], patients: dict[str, str]) -> tuple[str, ...]:
    """The group of each slide: its patient, or the slide itself without one."""
    return tuple(patients.get(s) or s for s in slides)


def resample(groups: Sequence[str], seed: int) -> Floats:
    """How often each slide is drawn when whole groups are drawn with replacement: float64 [RESAMPLES, slides].

    Every resample draws as many groups as there are (the bootstrap of Efron, 1979, on clusters).
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    return np.asarray(drawn[:, index], np.float64)


def interval(values: Floats) -> tuple[Floats, Floats]:
    """The ends of the middle 95 % of resampled values [RESAMPLES, ..]; nan where no resample is defined."""
    known = ~np.isnan(values).all(0)
    ends = np.full((2, *values.shape[1:]), np.nan)
    if known.any():
        ends[:, known] = np.nanquantile(values[:, known], ENDS, axis=0)
    return ends[0], ends[1]


def pixel_intervals(matrices: NDArray[np.int64], weights: Floats) -> dict[str, tuple[Floats, Floats]]:
    """The 95 % interval of every metric: matrices [slides, C, C], weights [RESAMPLES, slides]."""
    pooled = np.tensordot(weights, matrices.astype(np.float64), 1)
    return {name: interval(values) for name, values in scores_of(pooled).items()}


def froc_interval(hits: Sequence[Hits], weights: Floats) -> tuple[float, float]:
    """The 95 % interval of the FROC score of one class: its hits on every slide, weights [RESAMPLES, slides]."""
    drawn = ([h for h, times in zip(hits, row, strict=True) for _ in range(int(times))] for row in weights)
    low, high = interval(np.array([froc(slides).score for slides in drawn]))
    return float(low), float(high)
