"""How well scores rank positives above negatives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auc(scores: Floats, truth: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Fraction of (positive, negative) pairs that the scores rank correctly, ties count half: [n] -> float64 [..].

    `weights` float64 [.., n]: how often each item counts. nan where positives or negatives are missing.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    high, low = scores[truth], scores[~truth]
    ordered = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    positive, negative = weights[..., truth], weights[..., ~truth]
    pairs = positive.sum(-1) * negative.sum(-1)
    hits = ((positive @ ordered) * negative).sum(-1)
    return np.asarray(np.divide(hits, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0))


def mean_auc(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Mean AUC of the classes that have positives and negatives: [n, K] and bool [n, K]; nan if no class has both."""
    values = np.array([auc(s, t) for s, t in zip(scores.T, truth.T, strict=True)])
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
