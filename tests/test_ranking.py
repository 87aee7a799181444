"""AUC against a loop over all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.ranking import auc, mean_auc


def slow_auc(scores: list[float], truth: list[bool], times: list[int]) -> float:
    hits = pairs = 0.0
    for s, t, n in zip(scores, truth, times, strict=True):
        for s2, t2, n2 in zip(scores, truth, times, strict=True):
            if t and not t2:
                pairs += n * n2
                hits += n * n2 * (1.0 if s > s2 else 0.5 if s == s2 else 0.0)
    return hits / pairs if pairs else math.nan


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3), st.integers(0, 3)), max_size=9))
def test_auc_counts_pairs(rows: list[tuple[int, bool, int, int]]) -> None:
    scores, truth, first, second = (list(v) for v in zip(*rows, strict=True)) if rows else ([], [], [], [])
    array, kind = np.array(scores, float), np.array(truth, bool)
    np.testing.assert_allclose(auc(array, kind), slow_auc(scores, truth, [1] * len(rows)))
    weights = np.array([first, second], float).reshape(2, len(rows))
    np.testing.assert_allclose(
        auc(array, kind, weights), [slow_auc(scores, truth, first), slow_auc(scores, truth, second)]
    )
    np.testing.assert_allclose(auc(-array, kind), 1 - auc(array, kind))


def test_the_mean_leaves_out_classes_of_one_kind() -> None:
    scores = np.array([[0.1, 0.5, 0.2], [0.9, 0.5, 0.4], [0.3, 0.1, 0.6]])
    truth = np.array([[False, True, True], [True, True, True], [False, False, True]])
    assert mean_auc(scores, truth) == 1
    assert mean_auc(scores[:, :1], ~truth[:, :1]) == 0
    assert mean_auc(scores, truth[[0, 0, 1]]) == pytest.approx(0.5)
    assert math.isnan(mean_auc(scores, truth & False))
