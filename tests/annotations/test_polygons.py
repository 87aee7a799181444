"""Pixels of polygons against a slow even-odd count in exact arithmetic, and painting that no window changes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsipipe.annotations import polygons
from wsipipe.annotations.polygons import Region, RegionPainter, rasterise
from wsipipe.geometry import Grid, Window

SQUARE = [[10, 20], [50, 20], [50, 60], [10, 60], [10, 20]]
HOLE = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]


def inside(rings: list[list[tuple[Fraction, Fraction]]], x: Fraction, y: Fraction) -> bool:
    """Even-odd in exact arithmetic: edges crossed on the way from (x, y) to the left, edges through it counted."""
    odd = False
    for ring in rings:
        for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True):
            if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) <= x:
                odd = not odd
    return odd


def slow(regions: list[Region], shape: tuple[int, int], step: tuple[float, float], origin: tuple[int, int]) -> NDArray:
    out = np.zeros(shape, bool)
    exact = [[[(Fraction(x), Fraction(y)) for x, y in ring.tolist()] for ring in r.rings] for r in regions]
    for row in range(shape[0]):
        for col in range(shape[1]):
            x, y = (
                Fraction(o) + Fraction(s) * Fraction(2 * n + 1, 2)
                for o, s, n in zip(origin, step, (col, row), strict=True)
            )
            out[row, col] = any(inside(rings, x, y) for rings in exact)
    return out


# eighths of a pixel are exact in floating point, and often on a pixel's centre
points = st.lists(st.tuples(st.integers(-60, 260), st.integers(-60, 260)), min_size=3, max_size=7)


@given(
    st.lists(st.lists(points, min_size=1, max_size=3), min_size=1, max_size=3),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(1.0, 1.0), (2.0, 4.0), (0.5, 8.0)]),
    st.tuples(st.integers(-5, 5), st.integers(-5, 5)),
)
def test_pixels_whose_centre_is_inside(
    rings: list[list[list[tuple[int, int]]]],
    shape: tuple[int, int],
    step: tuple[float, float],
    origin: tuple[int, int],
) -> None:
    regions = [Region(tuple(np.array(ring, float) / 8 for ring in polygon)) for polygon in rings]
    found = rasterise(regions, shape, step, origin)
    assert found.dtype == np.bool_
    # edges that lean meet centres at fractions that are not exact: there the nearest pixel may differ
    expected = slow(regions, shape, step, origin)
    wrong = np.argwhere(found != expected)
    for row, col in wrong:
        centre = (origin[0] + step[0] * (col + 0.5), origin[1] + step[1] * (row + 0.5))
        assert min(distance(ring, centre) for r in regions for ring in r.rings) < 1e-9


def distance(ring: NDArray[np.float64], at: tuple[float, float]) -> float:
    """From a point to the nearest edge."""
    best = math.inf
    for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        d = b - a
        t = np.clip(np.dot(np.array(at) - a, d) / max(np.dot(d, d), 1e-300), 0, 1)
        best = min(best, float(np.hypot(*(a + t * d - at))))
    return best


def test_a_hole_is_empty_and_polygons_add_up() -> None:
    square, hole = (np.array(r, float) for r in (SQUARE, HOLE))
    found = rasterise([Region((square, hole)), Region((hole + 5,))], (8, 8), (10, 10))
    assert found.astype(int).tolist() == [
        [0] * 8,
        [0] * 8,
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],  # (25, 35) lies in the hole and, at its corner, in the second polygon
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0] * 8,
        [0] * 8,
    ]
    assert not rasterise([Region((square, hole))], (8, 8), (10, 10))[3, 2]


def test_rasterising_many_vertices_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    angle = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    radius = 300 + 40 * np.sin(9 * angle)
    star = Region((np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + 400,))
    whole = rasterise([star], (100, 100), (8, 8))
    monkeypatch.setattr(polygons, "_MAX_CROSSINGS", 300)
    np.testing.assert_array_equal(rasterise([star], (100, 100), (8, 8)), whole)
    area = 0.5 * np.mean(radius**2) * 2 * np.pi / 64
    assert whole.sum() == pytest.approx(area, rel=0.01)


def test_far_polygons_cost_no_memory() -> None:
    far = np.array(SQUARE, float) * 1e5
    assert not rasterise([Region((far,))], (4, 4), (1, 1)).any()
    assert rasterise([Region((far - 2e6,))], (4, 4), (1, 1)).all()


shapes = st.lists(st.tuples(st.lists(points, min_size=1, max_size=2), st.integers(0, 255)), max_size=4)


@given(shapes, st.sampled_from([1.0, 2.0, 1.98]), st.tuples(st.integers(0, 5), st.integers(0, 5)), st.data())
def test_a_window_is_a_part_of_the_whole_and_later_regions_cover_earlier(
    drawn: list[tuple[list[list[tuple[int, int]]], int]], scale: float, origin: tuple[int, int], data: st.DataObject
) -> None:
    grid = Grid((40, 30), (0.5, 0.5), (scale, scale), 16, 16, origin)
    width, height = grid.size_px
    regions = [Region(tuple(np.array(ring, float) / 8 + origin for ring in rings)) for rings, _ in drawn]
    painter = RegionPainter(regions, [value for _, value in drawn], grid, background=7)
    whole = painter.read(Window(0, 0, width, height))
    expected = np.full((height, width), 7, np.uint8)
    for region, (_, value) in zip(regions, drawn, strict=True):
        expected[rasterise([region], (height, width), grid.scale, origin)] = value
    np.testing.assert_array_equal(whole, expected)
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    np.testing.assert_array_equal(painter.read(Window(x, y, w, h)), whole[y : y + h, x : x + w])


def test_a_huge_slide_is_painted_one_window_at_a_time() -> None:
    grid = Grid((4_000_000, 4_000_000), (0.25, 0.25), (1.0, 1.0), 256, 256)
    far = Region((np.array([[0, 0], [4e6, 0], [4e6, 4e6], [0, 4e6]]),))
    assert RegionPainter([far], [3], grid).read(Window(3_999_990, 17, 10, 4)).tolist() == [[3] * 10] * 4
