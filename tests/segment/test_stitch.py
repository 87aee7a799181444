"""Stitching: a partition of unity for every stride and shape, in bands from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsipipe.geometry import Window
from wsipipe.segment.stitch import Band, stitch

Predict = Callable[[Sequence[Window]], np.ndarray]

SHARES = (1.0, 0.75, 0.5, 0.33, 0.25)
SHAPES = ((101, 77), (32, 32), (20, 13), (33, 64), (64, 9), (5, 90), (1, 1))


def maps(predict: Predict, size: tuple[int, int], channels: int, window: int, stride: int, **more) -> np.ndarray:
    """The whole map float32 [C, h, w]."""
    return np.concatenate([b.values for b in stitch(predict, size, channels, window, stride, **more)], axis=1)


def reader(image: np.ndarray, window_px: int) -> Predict:
    """A network that gives back its input; image float32 [C, h, w], garbage beyond its border."""
    channels, height, width = image.shape
    padded = np.full((channels, height + window_px, width + window_px), 1e6, np.float32)
    padded[:, :height, :width] = image

    def predict(windows: Sequence[Window]) -> np.ndarray:
        return np.stack(
            [padded[:, w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px].copy() for w in windows]
        )

    return predict


def noisy(windows: Sequence[Window]) -> np.ndarray:
    """A network whose answer depends on the window, so that overlapping windows disagree."""
    side = windows[0].width_px
    return np.stack(
        [np.random.default_rng([w.x_px, w.y_px]).random((2, side, side)).astype(np.float32) for w in windows]
    )


def every_start(length: int, window: int, stride: int) -> list[int]:
    """Steps of the stride as long as a window fits, and one last window that ends at the border."""
    found, s = [], 0
    while s + window < length:
        found.append(s)
        s += stride
    return [*found, max(0, length - window)]


def slow(predict: Predict, size: tuple[int, int], channels: int, window: int, stride: int, wanted=lambda w: True):
    """sum(w p) / sum(w), window by window and pixel by pixel, in double precision; nan where nothing covers."""
    width, height = size
    total, norm = np.zeros((channels, height, width)), np.zeros((height, width))
    for y in every_start(height, window, stride):
        for x in every_start(width, window, stride):
            if not wanted(Window(x, y, window, window)):
                continue
            p = predict([Window(x, y, window, window)])[0].astype(float)
            for i in range(min(window, height - y)):
                for j in range(min(window, width - x)):
                    weight = math.sin(math.pi * (i + 0.5) / window) ** 2 * math.sin(math.pi * (j + 0.5) / window) ** 2
                    total[:, y + i, x + j] += weight * p[:, i, j]
                    norm[y + i, x + j] += weight
    out = np.full(total.shape, np.nan)
    out[:, norm > 0] = total[:, norm > 0] / norm[norm > 0]
    return out


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", SHAPES)
def test_a_network_that_answers_1_gives_1_everywhere(size: tuple[int, int], share: float):
    found = maps(lambda ws: np.ones((len(ws), 1, 32, 32), np.float32), size, 1, 32, round(32 * share))
    assert found.shape == (1, size[1], size[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 1, atol=1e-6)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", SHAPES)
def test_a_network_that_returns_its_input_gives_it_back(size: tuple[int, int], share: float):
    red = np.random.default_rng(1).random((1, size[1], size[0]), np.float32)
    found = maps(reader(red, 32), size, 1, 32, round(32 * share))
    np.testing.assert_allclose(found, red, atol=1e-5)


geometry = st.integers(2, 24).flatmap(
    lambda window: st.tuples(st.just(window), st.integers(1, window), st.tuples(st.integers(1, 60), st.integers(1, 60)))
)


@given(geometry)
@settings(max_examples=60)
def test_any_stride_and_shape_gives_back_the_input(drawn: tuple[int, int, tuple[int, int]]):
    window, stride, size = drawn
    red = np.random.default_rng(0).random((1, size[1], size[0]), np.float32)
    np.testing.assert_allclose(maps(reader(red, window), size, 1, window, stride), red, atol=1e-5)


@pytest.mark.parametrize(("window", "stride", "size"), [(8, 3, (29, 21)), (8, 8, (17, 9)), (8, 2, (5, 19))])
def test_it_agrees_with_a_slow_stitcher(window: int, stride: int, size: tuple[int, int]):
    found = maps(noisy, size, 2, window, stride)
    np.testing.assert_allclose(found, slow(noisy, size, 2, window, stride), atol=1e-5)


@given(geometry, st.integers(0, 2**31))
@settings(max_examples=30)
def test_windows_left_out_leave_nan_exactly_where_nothing_covers(drawn: tuple[int, int, tuple[int, int]], seed: int):
    window, stride, size = drawn
    size, stride = (min(size[0], 30), min(size[1], 30)), max(stride, window // 4, 2)
    chosen: dict[Window, bool] = {}
    rng = np.random.default_rng(seed)

    def wanted(w: Window) -> bool:
        return chosen.setdefault(w, bool(rng.random() < 0.4))

    found = maps(noisy, size, 2, window, stride, wanted=wanted)
    expected = slow(noisy, size, 2, window, stride, wanted)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_wanted_is_nan_everywhere_and_the_network_is_not_asked():
    def never(windows: Sequence[Window]) -> np.ndarray:
        raise AssertionError("asked")

    assert np.isnan(maps(never, (50, 40), 3, 16, 8, wanted=lambda w: False)).all()


@given(geometry)
@settings(max_examples=60)
def test_bands_follow_from_top_to_bottom_and_each_window_is_asked_once(drawn: tuple[int, int, tuple[int, int]]):
    window, stride, (width, height) = drawn
    asked: list[Window] = []

    def predict(windows: Sequence[Window]) -> np.ndarray:
        asked.extend(windows)
        return np.zeros((len(windows), 1, window, window), np.float32)

    bands: list[Band] = list(stitch(predict, (width, height), 1, window, stride))
    assert [b.y_px for b in bands] == np.cumsum([0, *(b.values.shape[1] for b in bands[:-1])]).tolist()
    assert sum(b.values.shape[1] for b in bands) == height
    assert all(b.values.shape[2] == width for b in bands)
    assert all(0 < b.values.shape[1] <= window for b in bands)
    starts = [(x, y) for y in every_start(height, window, stride) for x in every_start(width, window, stride)]
    assert [(w.x_px, w.y_px) for w in asked] == starts
    assert {(w.width_px, w.height_px) for w in asked} == {(window, window)}


def test_a_band_is_finished_before_the_rows_below_it_are_asked():
    asked: list[int] = []

    def predict(windows: Sequence[Window]) -> np.ndarray:
        asked.append(windows[0].y_px)
        return np.ones((len(windows), 1, 16, 16), np.float32)

    bands = stitch(predict, (40, 400), 1, 16, 8)
    first = next(bands)
    assert asked == [0]
    kept = first.values.copy()
    next(bands)
    np.testing.assert_array_equal(first.values, kept)  # later work does not reach back into it
