"""HistoSegNet's thresholds: where sensitivity is specificity, from weak labels."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.pseudolabel.methods.histosegnet.thresholds import thresholds


def slow_theta(scores: list[float], labels: list[int]) -> float:
    """Half way between scores, where sensitivity and specificity differ least, then are highest; a third at least."""
    values = sorted({0.0, 1.0, *scores})
    best = (Fraction(-2), Fraction(0), 0.0)
    for low, high in itertools.pairwise(values):
        t = (low + high) / 2
        hits = [s > t for s, y in zip(scores, labels, strict=True) if y == 1]
        quiet = [s < t for s, y in zip(scores, labels, strict=True) if y == 0]
        sensitivity, specificity = Fraction(sum(hits), len(hits)), Fraction(sum(quiet), len(quiet))
        best = max(best, (-abs(sensitivity - specificity), sensitivity + specificity, -t))
    return max(1 / 3, -best[2])


@given(st.lists(st.tuples(st.integers(1, 63), st.integers(0, 1)), min_size=1, max_size=12))
def test_theta_is_where_sensitivity_is_specificity_but_a_third_at_least(pairs: list[tuple[int, int]]):
    scores, labels = [s / 64 for s, _ in pairs], [y for _, y in pairs]
    (theta,) = thresholds(torch.tensor(scores)[:, None], torch.tensor(labels).float()[:, None]).tolist()
    if len(set(labels)) < 2:
        assert theta == pytest.approx(1 / 3 if any(labels) else 0.5)
    else:
        assert theta == pytest.approx(slow_theta(scores, labels), abs=1e-6)
