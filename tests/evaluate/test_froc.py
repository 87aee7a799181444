"""Camelyon16's rules against a slow version written from them: flood fill, brute distances, a loop over thresholds."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.examples import examples

from wsipipe.evaluate.froc import (
    DILATION_UM,
    FALSE_POSITIVES,
    ITC_UM,
    LESION_MPP,
    Detections,
    Hits,
    find_lesions,
    froc,
    match,
)

Mask = NDArray[np.bool_]


def flood(open_: Mask, start: tuple[int, int], eight: bool) -> set[tuple[int, int]]:
    """The cells that are reached from `start` over open ones."""
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if eight else [])
    seen, queue = {start}, deque([start])
    while queue:
        r, c = queue.popleft()
        for dr, dc in steps:
            cell = r + dr, c + dc
            if 0 <= cell[0] < open_.shape[0] and 0 <= cell[1] < open_.shape[1] and open_[cell] and cell not in seen:
                seen.add(cell)
                queue.append(cell)
    return seen


def slow_lesions(mask: Mask, mpp: float) -> list[tuple[set[tuple[int, int]], float]]:
    """(cells, major axis in um) of every component."""
    tumour = np.argwhere(mask)
    near = np.zeros_like(mask)
    for r in range(mask.shape[0]):
        for c in range(mask.shape[1]):
            near[r, c] = len(tumour) > 0 and np.hypot(*(tumour - (r, c)).T).min() * mpp < DILATION_UM
    border = np.pad(~near, 1, constant_values=True)
    outside = flood(border, (0, 0), eight=False)
    filled = np.ones_like(mask)
    for r, c in outside:
        if 0 < r <= mask.shape[0] and 0 < c <= mask.shape[1]:
            filled[r - 1, c - 1] = False
    found, left = [], {(int(r), int(c)) for r, c in np.argwhere(filled)}
    while left:
        cells = flood(filled, min(left), eight=True)
        left -= cells
        yx = np.array(sorted(cells), float)
        covariance = np.cov(yx.T, bias=True) if len(yx) > 1 else np.zeros((2, 2))
        found.append((cells, 4 * math.sqrt(max(np.linalg.eigvalsh(covariance)[-1], 0)) * mpp))
    return found


Point = tuple[int, int, float]


def slow_froc(slides: list[tuple[Mask, list[Point]]], mpp: float) -> tuple[float, list[float], int]:
    """Score, sensitivities at the six points and number of lesions, from (mask, (row, col, p) ..) of every slide."""
    best: dict[tuple[int, int], float] = {}
    false: list[float] = []
    for number, (mask, points) in enumerate(slides):
        components = slow_lesions(mask, mpp)
        for i, (_, axis) in enumerate(components):
            if axis >= ITC_UM:
                best[number, i] = 0.0
        for r, c, p in points:
            hit = next((i for i, (cells, _) in enumerate(components) if (r, c) in cells), None)
            if hit is None:
                false.append(p)
            elif (number, hit) in best:
                best[number, hit] = max(best[number, hit], p)
    if not best:
        return math.nan, [], 0
    curve = [(0.0, 0.0)]
    for t in sorted({*false, *(p for p in best.values() if p > 0)}, reverse=True):
        curve.append((sum(p >= t for p in false) / len(slides), sum(p >= t for p in best.values()) / len(best)))
    at = []
    for wanted in FALSE_POSITIVES:
        before = [q for q in curve if q[0] <= wanted][-1]
        after = [q for q in curve if q[0] > wanted][:1]
        share = (wanted - before[0]) / (after[0][0] - before[0]) if after else 0.0
        at.append(before[1] + share * (after[0][1] - before[1]) if after else before[1])
    return sum(at) / len(at), at, len(best)


SIDE, MPP = 40, 16.01  # 275 um are 27500 / 1601 px, and so is no axis of fewer than 1601 px: no lesion is a tie
"""A coarse frame keeps the slow version fast: 640 um, dilation by 2 cells, lesions from about 17 cells on."""

boxes = st.lists(
    st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.integers(1, 22), st.integers(1, 4)), max_size=3
)
found = st.lists(
    st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])),
    max_size=8,
)


def drawn(of: list[tuple[int, int, int, int]]) -> Mask:
    mask = np.zeros((SIDE, SIDE), bool)
    for r, c, h, w in of:
        mask[r : r + h, c : c + w] = True
    return mask


def fast_hits(mask: Mask, points: list[Point], mpp: float = MPP) -> Hits:
    rows, cols, p = (np.array([q[i] for q in points]) for i in range(3))
    lesions = find_lesions(mask, (mpp, mpp))
    return match(lesions, rows.astype(np.intp), cols.astype(np.intp), p.astype(float), np.zeros_like(mask))


@given(st.lists(st.tuples(boxes, found), min_size=1, max_size=4))
@examples(25)
def test_the_rules_as_written_down_slowly(slides: list[tuple[list[tuple[int, int, int, int]], list[Point]]]) -> None:
    masks = [(drawn(b), points) for b, points in slides]
    curve = froc([fast_hits(m, points) for m, points in masks])
    score, at, n = slow_froc(masks, MPP)
    assert curve.lesions == n
    if not n:
        assert math.isnan(curve.score)
        return
    np.testing.assert_allclose(list(curve.at.values()), at, atol=1e-12)
    assert curve.score == pytest.approx(score)


@given(boxes)
@examples(25)
def test_components_and_their_axes(of: list[tuple[int, int, int, int]]) -> None:
    mask = drawn(of)
    lesions = find_lesions(mask, (MPP, MPP))
    slow = slow_lesions(mask, MPP)
    fast = {
        frozenset(map(tuple, np.argwhere(lesions.component == i + 1).tolist())): axis
        for i, axis in enumerate(lesions.axis_um)
    }
    assert set(fast) == {frozenset(cells) for cells, _ in slow}
    for cells, axis in slow:
        assert fast[frozenset(cells)] == pytest.approx(axis, abs=1e-6)


def test_near_pieces_are_one_lesion_and_far_ones_two() -> None:
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10] = True
    for gap_um, n in ((70, 1), (90, 2)):
        two = mask.copy()
        two[10:50, 10 + round(gap_um / LESION_MPP)] = True
        assert find_lesions(two, (LESION_MPP, LESION_MPP)).component.max() == n


def test_a_ring_is_hit_in_its_middle() -> None:
    ring = np.zeros((80, 80), bool)
    ring[10:70, 10:70] = True
    ring[20:60, 20:60] = False
    assert fast_hits(ring, [(40, 40, 0.5)], LESION_MPP).lesions.tolist() == [0.5]


def test_isolated_tumour_cells_are_neither_hit_nor_false() -> None:
    mask = np.zeros((60, 60), bool)
    mask[30, 30] = True
    hits = fast_hits(mask, [(30, 30, 0.9), (5, 5, 0.4)], LESION_MPP)
    assert (hits.lesions.tolist(), hits.false.tolist(), hits.itc) == ([], [0.4], 1)


def test_a_lesion_has_its_highest_hit_and_many_hits_are_no_false_positives() -> None:
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:20] = True
    hits = fast_hits(mask, [(20, 15, 0.2), (30, 15, 0.8), (40, 15, 0.5)], LESION_MPP)
    assert (hits.lesions.tolist(), hits.false.tolist()) == ([0.8], [])


def test_what_is_ignored_or_outside() -> None:
    mask, ignored = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    ignored[:10] = True
    rows, cols, p = np.array([5, 15, -1]), np.array([5, 5, 5]), np.array([0.9, 0.8, 0.7])
    hits = match(find_lesions(mask, (8, 8)), rows, cols, p, ignored)
    assert hits.false.tolist() == [0.8, 0.7]


def test_points_between_the_steps_of_the_curve_lie_on_straight_lines() -> None:
    """Two slides, two lesions: one hit surely, one hit less surely than a false positive on each slide."""
    hits = [Hits(np.array([0.9, 0.5]), np.array([0.8]), 0), Hits(np.zeros(0), np.array([0.7]), 0)]
    curve = froc(hits)
    assert curve.false_positives.tolist() == [0, 0, 0.5, 1, 1]
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 0.5, 1]
    assert list(curve.at.values()) == [0.5, 0.5, 1, 1, 1, 1]
    missed = froc([Hits(np.array([0.9, np.nan]), np.array([0.8]), 0)])
    assert list(missed.at.values()) == [0.5] * 6


def test_nothing_found_and_nothing_to_find() -> None:
    assert froc([Hits(np.array([np.nan]), np.zeros(0), 0)]).score == 0
    assert math.isnan(froc([Hits(np.zeros(0), np.array([0.3]), 2)]).score)
    assert Detections.none().xy_px0.shape == (0, 2)
