"""Rings of lattice points as arrays: areas, and cutting rings that touch themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int32]
"""Vertices [N, 2] (x, y), not closed: the first is not repeated. Lattice point (x, y) is the corner of pixel (x, y)."""


def area(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Area of a ring of vertices (x, y), negative if it runs clockwise in a plane whose y points up."""
    x, y = (
        x.astype(np.float64) - x[0],
        y.astype(np.float64) - y[0],
    )  # so the edge back to the first vertex adds 0
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def joined(rings: Sequence[Ring]) -> tuple[Ring, NDArray[np.int64]]:
    """All rings as one array, and where each starts."""
    return np.concatenate(rings), np.cumsum([0, *map(len, rings[:-1])])


def key_of(ring: Ring, width_px: int) -> NDArray[np.int64]:
    """A number for each vertex, ascending row by row."""
    return ring[:, 1].astype(np.int64) * (width_px + 1) + ring[:, 0]


def areas_of(whole: NDArray[Any], first: NDArray[np.int64]) -> NDArray[np.float64]:
    """Areas of the rings that start at `first` in whole [N, 2], each relative to its first vertex (shoelace)."""
    count = np.diff(first, append=len(whole))
    x, y = (whole - np.repeat(whole[first], count, axis=0)).T.astype(np.float64)
    after = np.arange(1, len(whole) + 1)
    after[first + count - 1] = first
    return np.asarray(np.add.reduceat(x * y[after] - x[after] * y, first) / 2)


def cut(rings: Sequence[Ring], width_px: int) -> list[list[Ring]]:
    """The parts of each ring such that no part visits a point twice."""
    out = [[ring] for ring in rings]
    if rings:
        whole, first = joined(rings)
        ring_of = np.repeat(np.arange(len(rings)), np.diff(first, append=len(whole)))
        order = np.lexsort((ring_of, key := key_of(whole, width_px)))
        same = (np.diff(key[order]) == 0) & (np.diff(ring_of[order]) == 0)
        for i in np.unique(ring_of[order[1:][same]]).tolist():
            out[i] = _cut_one(rings[i], key_of(rings[i], width_px))
    return out


def _cut_one(ring: Ring, key: NDArray[np.int64]) -> list[Ring]:
    """The parts of a ring that visits points twice; equal points have equal `key`."""
    _, which, count = np.unique(key, return_inverse=True, return_counts=True)
    marks = np.flatnonzero(count[which] > 1)
    turned = np.concatenate((ring[marks[0] :], ring[: marks[0]]))
    parts = np.split(turned, marks[1:] - marks[0])  # each starts at a point visited twice
    out, stack, place = [], list[tuple[int, Ring]](), dict[int, int]()
    for point, part in zip(which[marks].tolist(), parts, strict=True):
        if point in place:
            loop = stack[place[point] :]
            del stack[place[point] :]
            for left, _ in loop:
                del place[left]
            out.append(np.concatenate([p for _, p in loop]))
        place[point] = len(stack)
        stack.append((point, part))
    return [*out, np.concatenate([p for _, p in stack])]
