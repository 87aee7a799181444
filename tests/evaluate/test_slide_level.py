"""Slide scores against sorting all pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.evaluate.slide_level import LEVELS, slide_scores


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
