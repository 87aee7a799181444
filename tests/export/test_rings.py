"""Areas of rings, and rings that touch themselves cut into those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from wsipipe.export.rings import Ring, area, areas_of, cut, joined


def ring(*points: tuple[int, int]) -> Ring:
    return np.array(points, np.int32)


SQUARE = ring((2, 1), (4, 1), (4, 3), (2, 3))


def test_areas() -> None:
    triangle = ring((0, 0), (0, 3), (5, 0))
    whole, first = joined([SQUARE, triangle, SQUARE[::-1]])
    assert areas_of(whole, first).tolist() == [4.0, -7.5, -4.0]
    assert areas_of(whole * np.array([0.5, 0.25]), first).tolist() == [0.5, -0.9375, -0.5]


def test_areas_far_from_the_corner_are_exact() -> None:
    far = SQUARE.astype(np.float64) / 8 + 1e9
    assert areas_of(far, np.zeros(1, int)).tolist() == [4 / 64]
    assert area(*far.T) == 4 / 64
    assert area(*(SQUARE * 10**6).T) == areas_of(SQUARE * 10**6, np.zeros(1, int))[0] == 4e12
    assert area(*far[::-1].T) == -4 / 64


@pytest.mark.parametrize("turn", range(13))
def test_cut_at_the_points_visited_twice(turn: int) -> None:
    # three squares in a row, joined by their corners, in one stroke; the middle one is met twice
    stroke = ring(*[(0, 0), (2, 0), (2, 2), (4, 2), (4, 4), (6, 4), (6, 6), (4, 6), (4, 4), (2, 4), (2, 2), (0, 2)])
    (same,), rings = cut([SQUARE, np.roll(stroke, turn, axis=0)], 10)
    assert same is SQUARE
    assert sorted(sorted(map(tuple, r.tolist())) for r in rings) == [
        [(0, 0), (0, 2), (2, 0), (2, 2)],
        [(2, 2), (2, 4), (4, 2), (4, 4)],
        [(4, 4), (4, 6), (6, 4), (6, 6)],
    ]
    assert [area(*r.T) for r in rings] == [4, 4, 4]


def test_rings_that_touch_each_other_stay() -> None:
    rings = [SQUARE, SQUARE + 2]
    assert [len(r) for r in cut(rings, 10)] == [1, 1]
    assert cut([], 10) == []
