"""Calibration error against a loop over single scores, and what is well calibrated by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.evaluate.calibration import BINS, pixel_reliability, reliability, slide_reliability
from wsipipe.evaluate.slide_level import LEVELS


def slow_error(pairs: list[tuple[float, bool]]) -> float:
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for score, hit in pairs:
        bins[min(int(score * BINS), BINS - 1)].append((score, hit))
    error = 0.0
    for members in bins:
        if members:
            mean_score = sum(s for s, _ in members) / len(members)
            observed = sum(h for _, h in members) / len(members)
            error += len(members) / len(pairs) * abs(observed - mean_score)
    return error if pairs else math.nan


@given(st.lists(st.tuples(st.integers(0, 255), st.booleans()), max_size=50))
def test_pixels_by_their_stored_score(pairs: list[tuple[int, bool]]) -> None:
    counts = np.zeros((1, LEVELS, 2), np.int64)
    for score, hit in pairs:
        counts[0, score, int(hit)] += 1
    (found,) = pixel_reliability(counts)
    np.testing.assert_allclose(found.error, slow_error([(s / 255, h) for s, h in pairs]), atol=1e-12)
    assert found.count.sum() == len(pairs)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_slides(pairs: list[tuple[float, bool]]) -> None:
    scores = np.array([s for s, _ in pairs] + [np.nan])
    found = slide_reliability(scores, np.array([h for _, h in pairs] + [True], bool))
    np.testing.assert_allclose(found.error, slow_error(pairs), atol=1e-12)


def test_scores_that_mean_what_they_say_have_no_error() -> None:
    scores = np.array([0.1, 0.35, 0.5, 1.0])
    counts = np.array([10.0, 20, 6, 3])
    assert reliability(scores, counts, scores * counts).error == pytest.approx(0)
    assert reliability(scores, counts, np.zeros(4)).error == pytest.approx((scores * counts).sum() / counts.sum())
