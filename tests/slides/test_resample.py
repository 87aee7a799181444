"""Reading a window at the working resolution agrees with a slow mean over exact areas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window
from wsipipe.slides import resample
from wsipipe.slides.resample import area_mean, read_window


def slow_mean(rgb: NDArray[np.uint8], grid: Grid, window: Window, factor: int = 1) -> NDArray[np.float64]:
    """Every output pixel by itself: source pixels weighted by the area that they share with it; white outside."""
    sx, sy = grid.scale[0] * factor, grid.scale[1] * factor
    out = np.zeros((window.height_px, window.width_px, 3))
    for i in range(window.height_px):
        for j in range(window.width_px):
            x1, y1 = (window.x_px + j) * sx, (window.y_px + i) * sy
            total, weight = np.zeros(3), 0.0
            for y in range(math.floor(y1), math.ceil(y1 + sy)):
                for x in range(math.floor(x1), math.ceil(x1 + sx)):
                    area = (min(x + 1, x1 + sx) - max(x, x1)) * (min(y + 1, y1 + sy) - max(y, y1))
                    inside = 0 <= y < rgb.shape[0] and 0 <= x < rgb.shape[1]
                    total += max(0.0, area) * (rgb[y, x] if inside else 255.0)
                    weight += max(0.0, area)
            out[i, j] = total / weight
    return out


def noise(w: int, h: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def frame(rgb: NDArray[np.uint8], scale: tuple[float, float]) -> Grid:
    mpp = (0.5 * scale[0], 0.5 * scale[1])
    return Grid((rgb.shape[1], rgb.shape[0]), mpp, scale, 16, 16)


@settings(max_examples=40)
@given(
    st.tuples(st.floats(1, 5), st.floats(1, 5)),
    st.tuples(st.integers(-3, 9), st.integers(-3, 9)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(5, 37), st.integers(5, 37)),
)
def test_any_phase_scale_and_size_agrees_with_the_slow_mean(array_slide, scale, at, size, slide_size):
    rgb = noise(*slide_size)
    grid, window = frame(rgb, scale), Window(*at, *size)
    found = read_window(array_slide(rgb), grid, window)
    assert found.dtype == np.uint8
    assert np.abs(found - slow_mean(rgb, grid, window)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("factor", [2, 3])
def test_a_coarser_frame_is_the_mean_over_whole_groups_of_working_pixels(array_slide, factor: int):
    rgb = noise(61, 47)
    grid = frame(rgb, (1.3, 1.7))
    window = Window(2, 1, 6, 5)
    found = read_window(array_slide(rgb), grid, window, factor)
    assert np.abs(found - slow_mean(rgb, grid, window, factor)).max() <= 0.5 + 1e-3


def test_a_finer_frame_repeats_what_there_is(array_slide):
    rgb = noise(20, 20)
    found = read_window(array_slide(rgb), frame(rgb, (0.5, 0.5)), Window(4, 6, 8, 8))
    np.testing.assert_array_equal(found, rgb[3:7, 2:6].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_native_level_is_read_as_it_is(array_slide, level: int):
    slide = array_slide(noise(256, 192), (1, 2, 8))
    d = slide.downsamples[level]
    grid = Grid(slide.info.size_px0, (0.5 * d, 0.5 * d), (d, d), 16, 16)
    found = read_window(slide, grid, Window(3, 2, 20, 15))
    np.testing.assert_array_equal(found, slide.levels[level][2:17, 3:23])
    assert slide.reads == [(20, 15)]


def test_the_nearest_finer_level_is_the_source(array_slide):
    slide = array_slide(noise(512, 512), (1, 4, 16))
    for scale, cost in ((3.9, 1), (4.0, 4), (15.0, 4), (20.0, 16)):
        slide.reads.clear()
        read_window(slide, frame(slide.levels[0], (scale, scale)), Window(0, 0, 10, 10))
        assert slide.reads[0][0] == pytest.approx(10 * scale / cost, abs=1)
    assert slide.levels[0].shape == (512, 512, 3)


@settings(max_examples=30)
@given(st.floats(0.3, 5), st.integers(0, 255), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_a_constant_stays_constant(array_slide, scale: float, value: int, at: tuple[int, int]):
    rgb = np.full((64, 64, 3), value, np.uint8)
    assert (read_window(array_slide(rgb), frame(rgb, (scale, scale)), Window(*at, 6, 6)) == value).all()


def test_beyond_the_border_is_white(array_slide):
    rgb = np.zeros((40, 60, 3), np.uint8)
    found = read_window(array_slide(rgb), frame(rgb, (2.0, 2.0)), Window(-5, -5, 50, 40))
    assert (found[5:25, 5:35] == 0).all()
    found[5:25, 5:35] = 255
    assert (found == 255).all()


@pytest.mark.parametrize("limit", [1, 300, 2000])
def test_a_large_window_is_read_in_parts_with_the_same_result(array_slide, monkeypatch: pytest.MonkeyPatch, limit: int):
    slide = array_slide(noise(211, 173))
    grid, window = frame(slide.levels[0], (3.3, 2.7)), Window(-2, 1, 41, 60)
    whole = read_window(slide, grid, window)
    slide.reads.clear()
    monkeypatch.setattr(resample, "MOST_SOURCE_PX", limit)
    np.testing.assert_array_equal(read_window(slide, grid, window), whole)
    assert max(w * h for w, h in slide.reads) <= max(limit, 5 * 4)


@given(st.integers(1, 30), st.floats(0, 3), st.floats(0.2, 5), st.integers(1, 8), st.integers(0, 99))
def test_area_mean_keeps_the_integral_and_the_range(n: int, start: float, step: float, count: int, seed: int):
    values = np.random.default_rng(seed).uniform(0, 255, (n, 2))
    inside = [i for i in range(count) if start + (i + 1) * step <= n]
    means = area_mean(values, start, step, count)
    assert means.shape == (count, 2)
    for i in inside:
        assert values.min() - 1e-9 <= means[i].min()
        assert means[i].max() <= values.max() + 1e-9
        low, high = start + i * step, start + (i + 1) * step
        overlap = np.clip(np.minimum(np.arange(n) + 1, high) - np.maximum(np.arange(n), low), 0, None)
        np.testing.assert_allclose(means[i], overlap @ values / step, atol=1e-7)


def test_area_mean_by_a_whole_step_is_the_block_mean():
    values = np.arange(24.0).reshape(12, 2)
    np.testing.assert_allclose(area_mean(values, 0, 3, 4), values.reshape(4, 3, 2).mean(1))
