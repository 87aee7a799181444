"""Area means agree with a slow reference; whole factors are exact and round halves up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.area import NEAR, noise, shares

from wsipipe.slides.area_mean import area_mean, block_mean


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0, 3), st.floats(0, 3)),
    st.tuples(st.floats(0.2, 9), st.floats(0.2, 9)),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.integers(0, 99),
)
def test_area_mean_agrees_with_the_slow_mean_inside_the_image(
    have: tuple[int, int], start: tuple[float, float], steps: tuple[float, float], count: tuple[int, int], seed: int
) -> None:
    rgb = noise(*have, seed)
    found = area_mean(rgb, start, steps, count)
    assert found.shape == (count[1], count[0], 3)
    down, across = (shares(start[i], steps[i], count[i], have[i]) for i in (1, 0))
    mean = np.einsum("ay,yxc,bx->abc", down[:, :-1], rgb.astype(float), across[:, :-1], optimize=True)
    whole = np.ix_(down[:, -1] < 1e-9, across[:, -1] < 1e-9)
    assert np.abs(found[whole] - mean[whole]).max(initial=0) <= 0.5 + NEAR


@pytest.mark.parametrize("steps", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (1, 6), (16, 16), (16, 17), (64, 48)])
def test_whole_steps_are_exact_and_round_halves_up(steps: tuple[int, int]) -> None:
    (fx, fy), rgb = steps, noise(5 * steps[0] + 2, 4 * steps[1] + 1)
    sums = rgb[: 4 * fy, : 5 * fx].reshape(4, fy, 5, fx, 3).sum((1, 3), dtype=np.int64)
    np.testing.assert_array_equal(area_mean(rgb, (0.0, 0.0), steps, (5, 4)), (2 * sums + fx * fy) // (2 * fx * fy))
    bright = np.full((fy, fx, 3), 255, np.uint8)
    assert area_mean(bright, (0.0, 0.0), steps, (1, 1)).tolist() == [[[255, 255, 255]]]


def test_an_image_that_is_too_small_is_continued_by_its_border() -> None:
    rgb = noise(9, 7)
    found = area_mean(rgb, (0.0, 0.0), (2.0, 2.0), (5, 4))
    wanted: Any = np.pad(rgb, ((0, 1), (0, 1), (0, 0)), mode="edge")
    np.testing.assert_array_equal(found, area_mean(wanted, (0.0, 0.0), (2.0, 2.0), (5, 4)))


@pytest.mark.parametrize("block", [(2, 2), (3, 2), (16, 16), (17, 17)])
def test_block_means_are_exact(block: tuple[int, int]) -> None:
    (width, height), rgb = block, noise(6 * block[0], 5 * block[1])
    sums = rgb.reshape(5, height, 6, width, 3).sum((1, 3), dtype=np.int64)
    n = width * height
    np.testing.assert_array_equal(block_mean(rgb, width, height), (2 * sums + n) // (2 * n))
