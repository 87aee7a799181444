"""Sums over a rectangle: a partition of unity for every stride and shape, and the same bits whatever the rectangle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from support.stitching import Predict, noisy, reader, slow, slow_scores, subset

from wsipipe.geometry import Window
from wsipipe.segment.accumulate import Band, WindowAccumulator, argmax_mask, cell_means
from wsipipe.windows import BLENDS, WindowLattice, blend_weight

SHARES = (1.0, 0.75, 0.5, 0.33, 0.25)
SHAPES = ((101, 77), (32, 32), (20, 13), (33, 64), (64, 9), (5, 90), (1, 1))


def blended(
    predict: Predict,
    size: tuple[int, int],
    cover: WindowLattice,
    area: Window | None = None,
    cell: int = 1,
    blend: str = "hann",
) -> np.ndarray:
    """The map of `area` (default: all) float32 [C, h, w], nan where nothing covers."""
    area = area or Window(0, 0, *size)
    sums = WindowAccumulator(
        area, predict([Window(0, 0, cover.side_px, cover.side_px)]).shape[1], blend_weight(cover.side_px, blend), cell
    )
    pieces: list[Band] = []
    for window in cover.touching(area):
        pieces += sums.take(window.y_px)
        sums.add(window, predict([window])[0])
    pieces += sums.take(area.y_px + area.height_px)
    out = np.full((len(sums._total), area.height_px, area.width_px), np.nan, np.float32)
    for p in pieces:
        y, x = p.y_px - area.y_px, p.x_px - area.x_px
        part = out[:, y : y + p.values.shape[1], x : x + p.values.shape[2]]
        assert np.isnan(part).all(), "a pixel was given out twice"
        assert (p.values[:, ~p.known] == 0).all()
        part[:, p.known] = p.values[:, p.known]
    return out


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", SHAPES)
def test_a_network_that_answers_1_gives_1_everywhere(size: tuple[int, int], share: float, blend: str) -> None:
    """As released tools did not: a weighted sum divided by the plain number of windows lies far below 1."""
    cover = WindowLattice.plan(size, 32, round(32 * share))
    found = blended(lambda ws: np.ones((len(ws), 1, 32, 32), np.float32), size, cover, blend=blend)
    assert found.shape == (1, size[1], size[0])
    np.testing.assert_allclose(found, 1, atol=1e-6)


geometry = st.integers(2, 24).flatmap(
    lambda window: st.tuples(st.just(window), st.integers(1, window), st.tuples(st.integers(1, 60), st.integers(1, 60)))
)


@given(geometry, st.sampled_from(BLENDS), st.integers(1, 9))
@examples(60)
def test_any_stride_shape_and_cell_gives_back_the_input(
    drawn: tuple[int, int, tuple[int, int]], blend: str, cell: int
) -> None:
    window, stride, size = drawn
    red = np.random.default_rng(0).random((2, size[1], size[0]), np.float32)
    found = blended(reader(red), size, WindowLattice.plan(size, window, stride), cell=cell, blend=blend)
    np.testing.assert_allclose(found, red, atol=1e-5)


@pytest.mark.parametrize("stride", [256, 192, 128, 96, 64])
def test_strides_below_half_a_window_are_stitched_as_any_other(stride: int) -> None:
    """A released tool that merged each row of windows with the next one only failed at 96 and 64."""
    size = (520, 700)
    red = np.random.default_rng(1).random((1, size[1], size[0]), np.float32)
    np.testing.assert_allclose(blended(reader(red), size, WindowLattice.plan(size, 256, stride)), red, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "stride", "size"), [(8, 3, (29, 21)), (8, 8, (17, 9)), (8, 2, (5, 19)), (6, 9, (31, 22))]
)
@pytest.mark.parametrize("blend", BLENDS)
def test_it_agrees_with_a_slow_stitcher(window: int, stride: int, size: tuple[int, int], blend: str) -> None:
    weigh = (lambda i: 1.0) if blend == "constant" else (lambda i: math.sin(math.pi * (i + 0.5) / window) ** 2)
    found = blended(noisy, size, WindowLattice.plan(size, window, stride), blend=blend)
    np.testing.assert_allclose(found, slow(noisy, size, window, stride, weigh=weigh), atol=1e-5)


@given(geometry, st.integers(0, 2**31))
@examples(20)
def test_windows_left_out_leave_holes_exactly_where_nothing_covers(
    drawn: tuple[int, int, tuple[int, int]], seed: int
) -> None:
    window, stride, size = drawn
    size, stride = (min(size[0], 25), min(size[1], 25)), max(stride, window // 3, 2)
    cover = subset(WindowLattice.plan(size, window, stride), seed, 0.4)
    chosen = set(cover.touching(Window(0, 0, *size)))
    expected = slow(noisy, size, window, stride, chosen.__contains__)
    found = blended(noisy, size, cover)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(geometry, st.data())
@examples(40)
def test_a_rectangle_has_the_same_bits_as_the_whole_map_there(
    drawn: tuple[int, int, tuple[int, int]], data: st.DataObject
) -> None:
    window, stride, (width, height) = drawn
    stride, cell = max(stride, window // 4), data.draw(st.integers(1, 9))
    cover = subset(WindowLattice.plan((width, height), window, stride), data.draw(st.integers(0, 99)), 0.7)
    x, y = (data.draw(st.integers(0, (n - 1) // cell)) * cell for n in (width, height))
    area = Window(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    part = blended(noisy, (width, height), cover, area, cell)
    everything = blended(noisy, (width, height), cover)
    np.testing.assert_array_equal(part, everything[:, y : y + area.height_px, x : x + area.width_px])


def test_rows_are_given_out_as_soon_as_no_window_can_reach_them_and_in_whole_cells() -> None:
    sums, one = WindowAccumulator(Window(0, 0, 40, 100), 1, blend_weight(16), 5), np.ones((1, 16, 16), np.float32)
    sums.add(Window(0, 0, 16, 16), one)
    assert list(sums.take(4)) == []
    (piece,) = sums.take(8)
    assert (piece.y_px, piece.values.shape) == (0, (1, 5, 20))
    assert sums.next_px == 5
    kept = piece.values.copy()
    sums.add(Window(8, 8, 16, 16), 3 * one)
    np.testing.assert_array_equal(piece.values, kept)  # later work does not reach back into it
    (piece,) = sums.take(100)
    assert (piece.y_px, piece.values.shape, sums.next_px) == (5, (1, 20, 25), 100)


def test_a_window_out_of_turn_is_refused() -> None:
    sums, p = WindowAccumulator(Window(0, 0, 40, 100), 1, blend_weight(16)), np.ones((1, 16, 16), np.float32)
    with pytest.raises(ValueError, match="is out of order"):
        sums.add(Window(0, 8, 16, 16), p)
    list(sums.take(8))
    with pytest.raises(ValueError, match="is out of order"):
        sums.add(Window(0, 0, 16, 16), p)
    with pytest.raises(ValueError, match="does not touch"):
        sums.add(Window(40, 8, 16, 16), p)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
@examples(40)
def test_masks_and_scores_of_a_piece(height: int, width: int, cell: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet((1, 1, 1), (height, width)).transpose(2, 0, 1).astype(np.float32)
    known = rng.random((height, width)) < 0.8
    piece = Band(0, 0, np.where(known, p, 0), known)
    np.testing.assert_array_equal(argmax_mask(piece, 255), np.where(known, p.argmax(0), 255))
    holed = np.where(known, p, np.nan)
    np.testing.assert_allclose(cell_means(piece, cell, first=1), slow_scores(holed[1:], cell), atol=1e-6)


def test_of_equal_channels_the_first_is_taken() -> None:
    piece = Band(0, 0, np.full((3, 2, 2), 0.5, np.float32), np.ones((2, 2), bool))
    assert (argmax_mask(piece, 255) == 0).all()
