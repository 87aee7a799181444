"""Grid: frames convert without drift, and the lattice covers every pixel."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.errors import ConfigError
from wsipipe.geometry import COARSEST_PX, LEVEL_FACTOR, Grid, Window

side = st.integers(1, 400)


@st.composite
def lattices(draw: st.DrawFn) -> Grid:
    """A grid in its slide's own frame with stride <= patch, of 40 x 40 patches at the most."""
    patch = draw(st.integers(1, 120))
    stride = draw(st.integers(max(1, patch // 8), patch))
    length = st.integers(1, min(400, 40 * stride))
    return Grid((draw(length), draw(length)), (0.5, 0.5), (1.0, 1.0), patch, stride)


@given(lattices())
def test_windows_cover_every_pixel_and_none_is_needless(grid: Grid) -> None:
    width, height = grid.size_px
    seen = np.zeros((height, width), bool)
    windows = list(grid.windows())
    for _, _, w in windows:
        seen[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px] = True
        assert 0 <= w.x_px < width
        assert 0 <= w.y_px < height
    assert seen.all()
    assert len(windows) == grid.rows * grid.cols
    # without the last column, the right border would be bare
    assert grid.cols == 1 or (grid.cols - 2) * grid.stride_px + grid.patch_px < width
    assert grid.rows == 1 or (grid.rows - 2) * grid.stride_px + grid.patch_px < height


def test_windows_are_row_major_and_agree_with_window() -> None:
    grid = Grid((100, 60), (0.5, 0.5), (1.0, 1.0), 32, 16)
    cells = [(r, c) for r, c, _ in grid.windows()]
    assert cells == sorted(cells)
    assert all(w == grid.window(r, c) == Window(c * 16, r * 16, 32, 32) for r, c, w in grid.windows())


@given(
    st.tuples(st.floats(0, 2e5), st.floats(0, 2e5)),
    st.tuples(st.floats(0.1, 64), st.floats(0.1, 64)),
    st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)),
)
def test_to_px_and_to_px0_are_inverse(
    point: tuple[float, float], scale: tuple[float, float], origin: tuple[int, int]
) -> None:
    grid = Grid((200_000, 200_000), (0.5, 0.5), scale, 256, 256, origin)
    assert grid.to_px0((0, 0)) == origin
    assert grid.to_px(origin) == (0, 0)
    assert grid.to_px0(grid.to_px(point)) == pytest.approx(point, rel=1e-12, abs=1e-9)
    assert grid.to_px(grid.to_px0(point)) == pytest.approx(point, rel=1e-12, abs=1e-8)


@given(
    st.tuples(*[st.integers(-300, 3000)] * 2, *[st.integers(1, 900)] * 2),
    st.tuples(st.floats(0.3, 40), st.floats(0.3, 40)),
    st.tuples(st.integers(0, 500), st.integers(0, 500)),
)
def test_window_over_px0_is_the_smallest_that_holds_the_box(
    box: Any, scale: tuple[float, float], origin: tuple[int, int]
) -> None:
    grid = Grid((5000, 5000), (0.5, 0.5), scale, 64, 64, origin)
    w = grid.window_over_px0(box)
    (x1, y1), (x2, y2) = grid.to_px0((w.x_px, w.y_px)), grid.to_px0((w.x_px + w.width_px, w.y_px + w.height_px))
    x, y, width, height = box
    near = 1e-4
    assert x1 <= x + near
    assert y1 <= y + near
    assert x2 >= x + width - near
    assert y2 >= y + height - near
    assert x1 + scale[0] > x - near
    assert y1 + scale[1] > y - near
    assert x2 - scale[0] < x + width + near
    assert y2 - scale[1] < y + height + near


def test_window_over_px0_of_whole_pixels_is_those_pixels() -> None:
    grid = Grid((5000, 5000), (0.5, 0.5), (0.1, 0.7), 64, 64, (16, 32))
    for n in range(0, 3000, 7):
        x, y = grid.to_px0((n, n))
        assert grid.window_over_px0((x, y, 30 * 0.1, 20 * 0.7)) == Window(n, n, 30, 20)


@given(st.floats(-0.0099, 0.0099), st.sampled_from([1, 2, 4, 16]))
def test_a_level_within_one_percent_is_native_and_keeps_its_true_mpp(off: float, level: int) -> None:
    mpp0 = 0.5 * (1 + off) / level
    grid = Grid.plan((100_000, 90_000), (mpp0, mpp0), (1, 2, 4, 16), 0.5, (256, 256))
    assert grid.mpp == (mpp0 * level, mpp0 * level)
    assert grid.scale == (float(level), float(level))


@pytest.mark.parametrize("mpp0", [0.4990, 0.5049, 0.4951])
def test_a_native_level_does_not_drift_at_100k_px(mpp0: float) -> None:
    grid = Grid.plan((100_000, 100_000), (mpp0, mpp0), (1.0, 4.0), 0.5, (256, 256))
    assert grid.to_px0((99_999, 99_999)) == (99_999, 99_999)
    assert grid.size_px == (100_000, 100_000)
    assert 99_999 * grid.mpp[0] == pytest.approx(99_999 * mpp0)  # um, by the slide's own resolution


@given(
    st.floats(-0.0099, 0.0099),
    st.sampled_from([1, 2, 4]),
    st.integers(16, 512),
    st.floats(0.2, 1),
    st.tuples(st.integers(0, 63), st.integers(0, 63)),
    st.data(),
)
def test_patches_of_a_wide_slide_lie_on_whole_pixels_of_its_level(
    off: float, level: int, patch: int, part: float, origin: tuple[int, int], data: st.DataObject
) -> None:
    mpp0 = 0.5 * (1 + off) / level
    stride, origin = max(1, int(patch * part)), (origin[0] * level, origin[1] * level)
    grid = Grid.plan((100_000, 100_000), (mpp0, mpp0), (1.0, 2.0, 4.0), 0.5, (patch, stride), origin)
    assert (grid.mpp, grid.scale) == ((mpp0 * level, mpp0 * level), (level, level))
    for row, col in (
        data.draw(st.tuples(st.integers(0, grid.rows - 1), st.integers(0, grid.cols - 1))),
        (0, grid.cols - 1),
    ):
        w = grid.window(row, col)
        x, y = grid.to_px0((w.x_px, w.y_px))
        assert (x, y) == (origin[0] + col * stride * level, origin[1] + row * stride * level)
        assert grid.window_of_px0((x, y, patch * level, patch * level)) == w


@given(st.floats(0.2, 0.49), st.integers(0, 199_999))
def test_resampled_positions_do_not_drift_either(mpp0: float, x_px: int) -> None:
    grid = Grid.plan((200_000, 200_000), (mpp0, mpp0), (1.0,), 0.5, (256, 256))
    exact = Fraction(x_px) * Fraction(0.5) / Fraction(mpp0)
    assert abs(grid.to_px0((x_px, 0))[0] - exact) < 1e-9 * max(1, exact)


@pytest.mark.parametrize("mpp0", [0.25, 0.494, 0.5051, 0.3])
def test_outside_the_tolerance_the_asked_mpp_holds(mpp0: float) -> None:
    grid = Grid.plan((1000, 900), (mpp0, mpp0), (1.0,), 0.5, (256, 256))
    assert grid.mpp == (0.5, 0.5)
    assert grid.scale == pytest.approx((0.5 / mpp0, 0.5 / mpp0))
    assert grid.size_px == (round(1000 * mpp0 / 0.5), round(900 * mpp0 / 0.5))


def test_anisotropic_pixels_keep_x_and_y_apart() -> None:
    grid = Grid.plan((1000, 1000), (0.25, 0.26), (1.0,), 0.5, (64, 64))
    assert grid.mpp == (0.5, 0.5)
    assert grid.scale == pytest.approx((2.0, 0.5 / 0.26))
    assert grid.size_px == (500, 520)
    assert grid.to_px((100, 100)) == pytest.approx((50, 52))
    native = Grid.plan((1000, 1000), (0.498, 0.502), (1.0,), 0.5, (64, 64))
    assert native.mpp == (0.498, 0.502)
    assert native.scale == (1.0, 1.0)


@given(st.integers(1, 300_000), st.integers(1, 300_000))
def test_levels_halve_twice_until_the_overview_is_small(width: int, height: int) -> None:
    grid = Grid((width, height), (0.5, 0.5), (1.0, 1.0), 256, 256)
    shapes = [grid.level_shape(k) for k in range(grid.levels)]
    assert shapes[0] == (height, width)
    for k, (h, w) in enumerate(shapes):
        assert (h, w) == (math.ceil(height / LEVEL_FACTOR**k), math.ceil(width / LEVEL_FACTOR**k))
    assert max(shapes[-1]) <= COARSEST_PX
    assert all(max(s) > COARSEST_PX for s in shapes[:-1])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 300))
def test_cells_cover_the_slide_and_none_lies_beyond_it(width: int, height: int, cell_px: int) -> None:
    rows, cols = Grid((width, height), (0.5, 0.5), (1.0, 1.0), 256, 256).cells(cell_px)
    assert (rows - 1) * cell_px < height <= rows * cell_px
    assert (cols - 1) * cell_px < width <= cols * cell_px


def test_a_slide_smaller_than_a_pixel_of_the_grid_still_has_one() -> None:
    assert Grid((3, 2), (16.0, 16.0), (64.0, 64.0), 16, 16).size_px == (1, 1)


@given(
    st.tuples(side, side),
    st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
    st.tuples(st.floats(0.1, 64), st.floats(0.1, 64)),
    st.integers(1, 512),
    st.integers(1, 512),
    st.tuples(st.integers(0, 9999), st.integers(0, 9999)),
)
def test_to_dict_and_from_dict_are_inverse_through_json(
    size: tuple[int, int],
    mpp: tuple[float, float],
    scale: tuple[float, float],
    patch: int,
    stride: int,
    origin: tuple[int, int],
) -> None:
    grid = Grid(size, mpp, scale, patch, stride, origin)
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


def test_with_patches_changes_only_the_lattice() -> None:
    grid = Grid((1000, 900), (0.5, 0.5), (2.0, 2.0), 256, 256, (32, 16))
    other = grid.with_patches(128, 64)
    assert (other.patch_px, other.stride_px, other.origin_px0) == (128, 64, (32, 16))
    assert other.with_patches(256, 256) == grid


def test_window_of_px0_rounds_edges_so_that_neighbours_meet() -> None:
    grid = Grid((1000, 1000), (0.5, 0.5), (3.0, 4.0), 64, 64)
    assert grid.window_of_px0((30, 40, 300, 400)) == Window(10, 10, 100, 100)
    left, right = grid.window_of_px0((0, 0, 100, 100)), grid.window_of_px0((100, 0, 100, 100))
    assert left.x_px + left.width_px == right.x_px


def test_px_of_um_is_the_mean_of_both_axes() -> None:
    assert Grid((10, 10), (0.5, 0.5), (1.0, 1.0), 4, 4).px_of_um(8.0) == 16
    assert Grid((10, 10), (0.4, 0.6), (1.0, 1.0), 4, 4).px_of_um(8.0) == pytest.approx(16)


def test_grown_adds_the_margin_on_every_side() -> None:
    assert Window(10, 20, 30, 40).grown(5) == Window(5, 15, 40, 50)
    assert Window(10, 20, 30, 40).grown(-5) == Window(15, 25, 20, 30)


@pytest.mark.parametrize(("patch", "stride"), [(0, 1), (1, 0), (-5, 4)])
def test_an_empty_patch_or_stride_is_refused(patch: int, stride: int) -> None:
    with pytest.raises(ConfigError, match=r"both must be at least 1 \(--patch, --stride\)"):
        Grid((10, 10), (0.5, 0.5), (1.0, 1.0), patch, stride)
