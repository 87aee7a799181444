"""Simplified polygons: Douglas and Peucker as in their paper, within the tolerance, and valid to a slow eye."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage
from support.masked import Mask, inside

from wsipipe.export import simplify
from wsipipe.export.outlines import trace
from wsipipe.export.rings import Ring
from wsipipe.export.simplify import is_valid, simplified

Point = tuple[float, float]


def ring(*points: tuple[int, int]) -> Ring:
    return np.array(points, np.int32)


def away(p: Point, a: Point, b: Point) -> float:
    """Distance of a point to a segment."""
    (px, py), (ax, ay), (bx, by) = p, a, b
    along = (bx - ax) ** 2 + (by - ay) ** 2
    t = min(1.0, max(0.0, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / along)) if along else 0.0
    return float(np.hypot(px - ax - t * (bx - ax), py - ay - t * (by - ay)))


def paper(points: Sequence[Point], tolerance: float) -> list[Point]:
    """An open line, by recursion."""
    if len(points) < 3:
        return list(points)
    far = [away(p, points[0], points[-1]) for p in points[1:-1]]
    if max(far) <= tolerance:
        return [points[0], points[-1]]
    at = 1 + int(np.argmax(far))
    return paper(points[: at + 1], tolerance)[:-1] + paper(points[at:], tolerance)


def meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether two segments have any point in common."""

    def side(p: Point, q: Point, r: Point) -> float:
        return float(np.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])))

    def on(p: Point, q: Point, r: Point) -> bool:
        return side(p, q, r) == 0 and all(min(p[i], q[i]) <= r[i] <= max(p[i], q[i]) for i in (0, 1))

    proper = side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
    return proper or on(a, b, c) or on(a, b, d) or on(c, d, a) or on(c, d, b)


def check_valid(rings: Sequence[Ring]) -> None:
    """No two edges meet but at an end of both, and no point lies in two holes or in a hole outside."""
    edges = []
    for i, one in enumerate(rings):
        points = [tuple(p) for p in one.tolist()]
        assert len(set(points)) == len(points) >= 3
        edges += [(a, b, i) for a, b in zip(points, points[1:] + points[:1], strict=True)]
    for k, (a, b, _) in enumerate(edges):
        for c, d, _ in edges[k + 1 :]:
            ends = {a, b} & {c, d}
            if ends:
                (joint,) = ends
                (p,), (q,) = {a, b} - ends, {c, d} - ends
                assert min(away(p, joint, q), away(q, joint, p)) > 0, (a, b, c, d)
            else:
                assert not meet(a, b, c, d), (a, b, c, d)
    whole = np.concatenate(rings)
    for x in np.arange(whole[:, 0].min(), whole[:, 0].max(), 0.5) + 0.26:
        for y in np.arange(whole[:, 1].min(), whole[:, 1].max(), 0.5) + 0.23:
            holes = sum(inside([hole], x, y) for hole in rings[1:])
            assert holes <= inside(rings[:1], x, y), (x, y)


def check_simplified(rings: Sequence[Ring], um: tuple[float, float], tolerance_um: float) -> tuple[Ring, ...]:
    found = simplified(rings, um, tolerance_um)
    assert len(found) == len(rings)
    for old, new in zip(rings, found, strict=True):
        points, kept = [tuple(p) for p in old.tolist()], [tuple(p) for p in new.tolist()]
        assert kept == [p for p in points if p in kept]  # in their order, none moved
        assert kept[0] == points[0]
        places = [points.index(p) for p in kept] + [len(points)]
        for low, high in pairwise(places):
            a, b, *between = (np.multiply(points[i % len(points)], um) for i in (low, high, *range(low + 1, high)))
            assert all(away(tuple(p), tuple(a), tuple(b)) <= tolerance_um + 1e-9 for p in between)
    check_valid(found)
    return found


HOLES_TOUCH = np.ones((7, 8), bool)
HOLES_TOUCH[[0, 1, 1, 2], [6, 4, 7, 3]] = False
"""Both holes lie in the half that a tolerance of 4 cuts off."""


@given(
    arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9)),
    st.sampled_from([(1.0, 1.0), (0.5, 0.25)]),
    st.sampled_from([0.3, 0.75, 1.5, 4.0]),
)
@example(HOLES_TOUCH, (1.0, 1.0), 4.0)
def test_within_the_tolerance_and_valid(mask: Mask, um: tuple[float, float], tolerance_um: float) -> None:
    for outline in trace([mask.astype(np.uint8)], mask.shape[1]):
        assert is_valid(outline.rings)
        check_simplified(outline.rings, um, tolerance_um)


def test_larger_shapes_with_holes_lose_most_vertices() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((45, 60)), 3)
    outlines = list(trace([(noise > -0.02).astype(np.uint8)], 60))
    assert max(len(o.rings) for o in outlines) > 2
    for outline in outlines:
        found = check_simplified(outline.rings, (1, 1), 1.0)
        if sum(map(len, outline.rings)) > 200:
            assert sum(map(len, found)) < 0.4 * sum(map(len, outline.rings))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tolerance", [0.01, 0.1, 0.5])
def test_as_in_the_paper(seed: int, tolerance: float) -> None:
    rings: list[NDArray[np.float64]] = [np.random.default_rng((seed, n)).random((n, 2)) for n in (40, 3, 25)]
    whole, first = np.concatenate(rings), np.array([0, 40, 43])
    anchors = np.zeros(len(whole), bool)
    anchors[[0, 11, 17, 40, 41, 43, 60]] = True
    kept = simplify._kept(whole, first, np.array([40, 3, 25]), anchors, tolerance)
    expected: list[Point] = []
    for some, fixed in zip(rings, ([0, 11, 17], [0, 1], [0, 17]), strict=True):
        closed = [tuple(p) for p in [*some.tolist(), some[0].tolist()]]
        for a, b in zip(fixed, [*fixed[1:], len(some)], strict=True):
            expected += paper(closed[a : b + 1], tolerance)[:-1]
    assert [tuple(p) for p in whole[kept].tolist()] == expected


def stairs(n: int) -> Ring:
    """A triangle of squares, n steps down on its long side."""
    return next(iter(trace([np.tri(n, dtype=np.uint8)], n))).rings[0]


def test_stairs_become_a_line() -> None:
    assert len(stairs(20)) == 42
    (found,) = simplified([stairs(20)], (1, 1), 0.8)
    assert found.tolist() == [[0, 0], [20, 20], [0, 20]]
    (exact,) = simplified([stairs(20)], (1, 1), 0.3)
    np.testing.assert_array_equal(exact, stairs(20))


def test_what_is_smaller_than_the_tolerance_stays() -> None:
    square, hole = ring((0, 0), (40, 0), (40, 40), (0, 40)), ring((5, 5), (5, 6), (6, 6), (6, 5))
    for old, new in zip((square, hole), simplified([square, hole], (1, 1), 10.0), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_hole_is_not_left_outside() -> None:
    outside = ring((0, 0), (90, 0), (90, 30), (54, 30), (54, 36), (46, 36), (46, 30), (0, 30))
    hole = ring((49, 32), (49, 34), (51, 34), (51, 32))  # in the bay, which a tolerance of 7 cuts off
    found = check_simplified([outside, hole], (1, 1), 7.0)
    assert len(found[0]) == 8
    assert len(simplified([outside], (1, 1), 7.0)[0]) == 4


def test_a_hole_that_touches_the_outside_stays_on_its_side() -> None:
    rows = ("..1.11", "1111.1", "11.111", "11.1.1", "111.1.", "11.11.", ".1.11.")
    mask = np.array([[c == "1" for c in row] for row in rows], np.uint8)
    (whole,) = (o for o in trace([mask], 6) if len(o.rings) == 3)
    found = check_simplified(whole.rings, (1, 1), 3.0)
    assert sum(map(len, found)) < sum(map(len, whole.rings))


def test_a_ring_that_would_vanish_does_not_keep_the_others_from_losing_vertices() -> None:
    hole = ring((5, 12), (5, 13), (6, 13), (6, 12))
    outside, same = simplified([stairs(20), hole], (1, 1), 0.8)
    assert outside.tolist() == [[0, 0], [20, 20], [0, 20]]
    np.testing.assert_array_equal(same, hole)


SQUARE = ring((0, 0), (9, 0), (9, 9), (0, 9))


@pytest.mark.parametrize(
    ("rings", "valid"),
    [
        ([SQUARE], True),
        ([SQUARE, ring((1, 1), (1, 2), (2, 2))], True),
        ([SQUARE, ring((0, 0), (1, 2), (2, 1))], True),  # touches a corner
        ([SQUARE, ring((1, 1), (1, 3), (3, 3)), ring((3, 3), (3, 5), (5, 5))], True),
        ([SQUARE, ring((1, 1), (1, 10), (2, 2))], False),  # crosses the outside
        ([SQUARE, ring((0, 3), (1, 4), (1, 3))], False),  # touches an edge
        ([SQUARE, ring((11, 1), (11, 2), (12, 2))], False),  # outside
        ([SQUARE, ring((11, 1), (11, 2), (12, 2)), ring((12, 2), (12, 3), (13, 3))], False),  # two outside that touch
        ([SQUARE, ring((1, 1), (1, 8), (8, 8), (8, 1)), ring((2, 2), (2, 3), (3, 3))], False),  # hole in a hole
        ([ring((0, 0), (4, 4), (4, 0), (0, 4))], False),  # a bow
        ([ring((0, 0), (4, 0), (2, 0), (2, 2))], False),  # back on itself
        ([SQUARE, ring((0, 0), (0, 9), (5, 5))], False),  # shares an edge
    ],
)
def test_what_is_valid(monkeypatch: pytest.MonkeyPatch, rings: list[Ring], valid: bool) -> None:
    assert is_valid(rings) == valid
    monkeypatch.setattr(simplify, "_PAIRS", 3)
    assert is_valid([r[:, ::-1] for r in rings]) == valid
