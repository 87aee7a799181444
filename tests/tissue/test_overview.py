"""The overview: bounded size, ink colours distinguished from stains, and contrast per block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from wsipipe.geometry import Grid
from wsipipe.tissue import overview

STAINS = {
    "haematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "dab": (0.27, 0.57, 0.78),
    "blue counterstain": (0.72, 0.62, 0.31),
}


@examples(200)
@given(st.sampled_from([("haematoxylin", "eosin"), ("haematoxylin", "dab")]), st.floats(0, 2.5), st.floats(0, 2.5))
def test_no_mixture_of_stains_has_the_colours_of_ink(stains: tuple[str, str], one: float, other: float) -> None:
    od = one * np.array(STAINS[stains[0]]) + other * np.array(STAINS[stains[1]])
    red, green, blue = (np.array([v], np.float32) for v in od)
    assert not overview._is_ink(red, green, blue).any()


@given(st.floats(0, 2.0), st.floats(0, 0.5))
def test_a_blue_counterstain_with_little_dab_has_no_colours_of_ink(counterstain: float, dab: float) -> None:
    od = counterstain * np.array(STAINS["blue counterstain"]) + dab * np.array(STAINS["dab"])
    red, green, blue = (np.array([v], np.float32) for v in od * min(1, 1.3 / max(od.max(), 1e-9)))
    assert not overview._is_ink(red, green, blue).any()


@examples(30)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([8, 12]), st.integers(1, 4), st.integers(0, 99))
def test_contrast_agrees_with_a_loop_over_pairs(rows: int, cols: int, side: int, lag: int, seed: int) -> None:
    grey = np.random.default_rng(seed).random((rows * side, cols * side)).astype(np.float32)
    found = overview._contrast(grey, side, lag)
    for i in range(rows):
        for j in range(cols):
            block = grey[i * side : (i + 1) * side, j * side : (j + 1) * side].tolist()
            pairs = [(block[y][x] - block[y][x + lag]) ** 2 for y in range(side) for x in range(side - lag)]
            pairs += [(block[y][x] - block[y + lag][x]) ** 2 for y in range(side - lag) for x in range(side)]
            assert found[i, j] == pytest.approx(np.mean(pairs), rel=1e-4)


@pytest.mark.parametrize("size", [(300_000, 200_000), (1, 5_000_000), (40_000, 40_000), (7, 3)])
def test_the_overview_of_the_largest_slide_is_small(size: tuple[int, int]) -> None:
    grid = Grid(size, (0.25, 0.25), (1.0, 1.0), 256, 256)
    frame = overview.OverviewFrame.plan(grid, 8.0)
    height, width = frame.shape
    assert height * width <= overview.MAX_OVERVIEW_PX
    assert (width - 1) * frame.step_px < size[0] <= width * frame.step_px
    assert (height - 1) * frame.step_px < size[1] <= height * frame.step_px
    assert frame.mpp == pytest.approx(0.25 * frame.step_px)
    assert frame.step_px == 32 or height * width > 0.9 * overview.MAX_OVERVIEW_PX or min(size) == 1
