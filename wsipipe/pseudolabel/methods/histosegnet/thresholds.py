"""Step 2: the threshold theta of every class, where sensitivity equals specificity on the training windows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEAST_THETA = 1 / 3
"""A class with a lower score is never present."""

UNSEEN_THETA = 0.5
"""Theta of a class without positives."""


def thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """Theta of every class from scores float [M, K] and labels float [M, K] of 1, 0 or nan -> float [K].

    Each lies half way between two scores. Of thresholds with the same difference between sensitivity and specificity,
    it is the one where both are highest; without negatives it is `LEAST_THETA`.
    """
    thetas = []
    for s, y in zip(scores.double().T.numpy(), labels.T.numpy(), strict=True):
        positive, negative = np.sort(s[y == 1]), np.sort(s[y == 0])
        if not len(positive) or not len(negative):
            thetas.append(LEAST_THETA if len(positive) else UNSEEN_THETA)
            continue
        found = np.unique(np.concatenate([[0.0], positive, negative, [1.0]]))
        t = (found[1:] + found[:-1]) / 2
        # in units of 1 / (positives x negatives), which are integers: ties are exact
        sensitivity = (len(positive) - np.searchsorted(positive, t)) * len(negative)
        specificity = np.searchsorted(negative, t) * len(positive)
        best = np.lexsort((-sensitivity - specificity, np.abs(sensitivity - specificity)))[0]
        thetas.append(max(LEAST_THETA, float(t[best])))
    return torch.tensor(thetas)
