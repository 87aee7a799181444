"""Outlines: the polygons are the pixels, each polygon is valid, and how the mask arrives makes no difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from support.masked import Mask, pieces_of, pixels_of

from wsipipe.export import outlines
from wsipipe.export.outlines import Outline, trace
from wsipipe.export.rings import Ring

masks = st.integers(1, 4).flatmap(
    lambda most: arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, most))
)


def picture(*rows: str) -> Mask:
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.uint8)


HOLES_TOUCH = picture("1111", "1.11", "11.1", "1111")

ISLAND_TOUCHES = picture("11111", "1..11", "1.1.1", "11.11", "11111")
"""A piece in the hole of another, which it touches at two corners: the hole is one."""

OPEN_AT_A_CORNER = picture("111.", "1.1.", "11.1", "..11")
"""A hole that touches the outside, and two pieces that touch."""

NESTED = picture("1111111", "1222221", "1211121", "1212121", "1211121", "1222221", "1111111")


def traced(mask: Mask, heights: Sequence[int] = (3,)) -> list[Outline]:
    """Outlines of a mask that comes in bands of these heights in turn, by their first pixels."""
    bands, y = list[Mask](), 0
    while y < len(mask):
        bands.append(mask[y : y + heights[len(bands) % len(heights)]])
        y += len(bands[-1])
    return sorted(trace(bands, mask.shape[1]), key=lambda o: o.first_px[::-1])


def unit_edges(ring: Ring) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The ring in steps of one pixel."""
    points = ring.tolist()
    out = []
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        n = max(abs(x2 - x1), abs(y2 - y1))
        steps = [(x1 + (x2 - x1) // n * i, y1 + (y2 - y1) // n * i) for i in range(n + 1)]
        out += list(pairwise(steps))
    return out


def check_valid(outline: Outline) -> None:
    """Valid as OGC and RFC 7946 have it, given that its pixels are one 4-connected piece."""
    turns = Counter[tuple[tuple[int, int], ...]]()
    for i, ring in enumerate(outline.rings):
        x, y = ring.T.astype(int)
        dx, dy = np.roll(x, -1) - x, np.roll(y, -1) - y
        assert ((dx == 0) != (dy == 0)).all()  # along the edges of pixels
        assert ((dx == 0) != (np.roll(dx, 1) == 0)).all()  # a turn at every vertex
        twice_area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum()
        assert (twice_area > 0) == (i == 0)  # outside first, then holes
        edges = unit_edges(ring)
        assert max(Counter(start for start, _ in edges).values()) == 1  # no point twice
        turns.update(tuple(sorted(edge)) for edge in edges)
        assert ring.tolist()[0] == min(ring.tolist(), key=lambda p: (p[1], p[0]))
    assert max(turns.values()) == 1  # rings share points, never edges


@given(masks, st.lists(st.integers(1, 5), min_size=1, max_size=3))
@example(HOLES_TOUCH, [2])
@example(ISLAND_TOUCHES, [2])
@example(OPEN_AT_A_CORNER, [1])
@example(NESTED, [3])
@example(np.ones((1, 1), np.uint8), [1])
@example(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 + 1, [3])
@example(np.zeros((5, 3), np.uint8), [2])
def test_the_polygons_are_the_pieces_and_valid(mask: Mask, heights: list[int]) -> None:
    found = traced(mask, heights)
    assert [(o.value, o.first_px[::-1]) for o in found] == [(v, min(piece)) for v, piece in pieces_of(mask)]
    for outline, (_, piece) in zip(found, pieces_of(mask), strict=True):
        assert pixels_of(outline.rings, mask.shape) == piece
        check_valid(outline)


def same(some: Sequence[Outline], others: Sequence[Outline]) -> bool:
    def plain(found: Sequence[Outline]) -> list[object]:
        return [(o.value, o.first_px, [r.tolist() for r in o.rings]) for o in found]

    return plain(some) == plain(others)


@given(masks, st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_bands_make_no_difference(mask: Mask, heights: list[int]) -> None:
    assert same(traced(mask, heights), traced(mask, [len(mask)]))


@pytest.mark.parametrize("limit", ["PIXELS_AT_ONCE", "CORNERS_AT_ONCE"])
def test_what_is_looked_at_together_makes_no_difference(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    mask = np.random.default_rng(0).integers(0, 4, (60, 50)).astype(np.uint8)
    whole = traced(mask, [60])
    monkeypatch.setattr(outlines, limit, 120)
    seen, links = list[int](), outlines._Tracer._links
    monkeypatch.setattr(outlines._Tracer, "_links", lambda self, corners, n: seen.append(n) or links(self, corners, n))
    assert same(traced(mask, [60]), whole)
    assert max(seen) <= 4


def test_known_outlines() -> None:
    (one,) = traced(picture("....", ".11.", ".11.", "...."))
    assert (one.value, one.first_px) == (1, (1, 1))
    assert [r.tolist() for r in one.rings] == [[[1, 1], [3, 1], [3, 3], [1, 3]]]
    (touching,) = traced(picture("111", "1.1", "11."))
    assert [r.tolist() for r in touching.rings] == [
        [[0, 0], [3, 0], [3, 2], [2, 2], [2, 3], [0, 3]],
        [[1, 1], [1, 2], [2, 2], [2, 1]],
    ]
    first, second = traced(picture("2.", ".2"))
    assert [first.first_px, second.first_px] == [(0, 0), (1, 1)]
    assert [len(o.rings) for o in traced(HOLES_TOUCH)] == [3]
    assert [len(o.rings) for o in traced(ISLAND_TOUCHES)] == [2, 1]
    assert [(o.value, len(o.rings)) for o in traced(NESTED)] == [(1, 2), (2, 2), (1, 2), (2, 1)]


def test_pieces_are_handed_out_as_soon_as_they_are_complete() -> None:
    mask = np.zeros((30, 4), np.uint8)
    mask[1:3], mask[5:25, 0], mask[6:8, 2:] = 1, 2, 3
    taken = 0

    def bands() -> Iterator[Mask]:
        nonlocal taken
        for y in range(30):
            taken = y
            yield mask[y : y + 1]

    assert [(o.value, taken) for o in trace(bands(), 4)] == [(1, 3), (3, 8), (2, 25)]


def test_a_large_mask_of_wound_and_nested_pieces() -> None:
    noise = np.random.default_rng(1).standard_normal((150, 300))
    mask = np.digitize(ndimage.gaussian_filter(noise, 1.5), (-0.05, 0.0)).astype(np.uint8)
    found = traced(mask, [37])
    flips = np.zeros((3, 151, 301), int)
    for outline in found:
        check_valid(outline)
        for ring in outline.rings:
            for (x, y1), (x2, y2) in zip(ring.tolist(), np.roll(ring, -1, 0).tolist(), strict=True):
                flips[outline.value, min(y1, y2) : max(y1, y2), x] += x == x2
    for value in (1, 2):
        np.testing.assert_array_equal(flips[value].cumsum(1)[:150, :300] % 2 == 1, mask == value)
    assert len(found) == sum(ndimage.label(mask == value)[1] for value in (1, 2))
    assert max(len(o.rings) for o in found) > 20
