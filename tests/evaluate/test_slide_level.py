"""Slide scores against sorting all pixels, and AUC against a loop over all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.evaluate.slide_level import LEVELS, auc, slide_scores


@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_the_mean_of_the_highest_share(pixels: list[int], top: float) -> None:
    counts = np.bincount(pixels, minlength=LEVELS)[None]
    taken = sorted(pixels, reverse=True)[: max(1, math.ceil(top * len(pixels)))]
    assert slide_scores(counts, top)[0] == pytest.approx(sum(taken) / len(taken) / 255)


def test_classes_apart_and_a_slide_without_tissue() -> None:
    counts = np.zeros((3, LEVELS), np.int64)
    counts[0, 255], counts[0, 0], counts[1, 51] = 1, 99, 100
    scores = slide_scores(counts, 0.02)
    assert scores[:2] == pytest.approx([0.5, 0.2])
    assert np.isnan(scores[2])


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
