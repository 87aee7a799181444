"""Simplify a polygon within a tolerance (Douglas and Peucker, 1973) and keep it valid.

Every ring keeps its upper left vertex and the one farthest from it. Between two kept vertices, the vertex farthest from
their line is kept if its distance exceeds the tolerance. Where rings touch, the touching vertices and their neighbours
are kept. A ring that would lose its area is left unchanged. If rings would meet, or interior and exterior would swap,
the tolerance is halved; after `HALVINGS` the polygon is left unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from wsipipe.export.rings import Ring, area, areas_of, joined

HALVINGS = 4
"""How often the tolerance is halved before a polygon is left unchanged."""

_PAIRS = 2**20
"""Pairs of edges compared at a time."""

Points = NDArray[np.int64]
"""[N, 2] (x, y)."""


def simplified(rings: Sequence[Ring], um_per_px: tuple[float, float], tolerance_um: float) -> tuple[Ring, ...]:
    """The rings of a valid polygon (exterior, then holes) with fewer vertices; no vertex moves, and it stays valid.

    um_per_px: (x, y) um between lattice points. Every removed vertex is within `tolerance_um` of the new outline.
    """
    whole, first = joined(rings)
    size = np.diff(first, append=len(whole))
    shared = _shared(whole)
    before, after = _neighbours(first, size)
    anchors = shared | shared[before] | shared[after]
    anchors[first] = True
    anchors[_farthest(whole, first, size)] = True
    signs = np.sign(areas_of(whole, first))
    um = whole * np.array(um_per_px)
    for halving in range(HALVINGS + 1):
        kept = _kept(um, first, size, anchors, tolerance_um / 2**halving)
        thin = [ring[of] for ring, of in zip(rings, np.split(kept, first[1:]), strict=True)]
        lost = [len(t) < 3 or np.sign(area(*t.T)) != s for t, s in zip(thin, signs, strict=True)]
        thin = [ring if gone else t for ring, t, gone in zip(rings, thin, lost, strict=True)]
        if is_valid(thin):
            return tuple(thin)
    return tuple(rings)


def is_valid(rings: Sequence[Ring]) -> bool:
    """Whether rings meet only in common vertices, with all holes inside the exterior; no ring visits a point twice.

    Rings start at their upper left vertex. Rings that touch must not cross there; this is not checked.
    """
    whole, first = joined(rings)
    size = np.diff(first, append=len(whole))
    _, after = _neighbours(first, size)
    points = whole.astype(np.int64)
    if any(_meet(a, b).any() for a, b in _near(points, points[after])):
        return False
    return bool((_crossings(points, after, first[_loose(whole, first, size)]) % 2 == 1).all())


def _loose(whole: Ring, first: Points, size: Points) -> Points:
    """Of each group of holes that touch each other but not the exterior, the hole with the upper left vertex.

    If it is inside the exterior, so are the others; holes that touch the exterior are inside too, as no edges cross.
    """
    point, count = _visits(whole)
    ring_of = np.repeat(np.arange(len(first)), size)
    touch = np.flatnonzero(count[point] > 1)
    links = (np.ones(len(touch), bool), (ring_of[touch], len(first) + point[touch]))
    group = connected_components(csr_array(links, shape=(len(first) + len(count),) * 2), directed=False)[1]
    group = group[: len(first)]
    order = np.lexsort((*whole[first].T, group))
    upper = order[np.flatnonzero(np.diff(group[order], prepend=-1))]
    return np.asarray(upper[group[upper] != group[0]], np.int64)


def _shared(whole: Ring) -> NDArray[np.bool_]:
    """Whether each vertex belongs to two rings: bool [N]."""
    point, count = _visits(whole)
    return np.asarray(count[point] > 1)


def _visits(whole: Ring) -> tuple[Points, Points]:
    """The number of the point at each vertex, [N], and how often each point is visited, [points]."""
    key = whole[:, 1].astype(np.int64) << 32 | whole[:, 0]
    _, point, count = np.unique(key, return_inverse=True, return_counts=True)
    return np.asarray(point, np.int64), np.asarray(count, np.int64)


def _neighbours(first: Points, size: Points) -> tuple[Points, Points]:
    """Indices of the vertices before and after each one in its ring."""
    index = np.arange(int(size.sum()))
    before, after = index - 1, index + 1
    before[first], after[first + size - 1] = first + size - 1, first
    return before, after


def _farthest(whole: Ring, first: Points, size: Points) -> Points:
    """Of each ring the index of the vertex farthest from its first."""
    far = ((whole - np.repeat(whole[first], size, axis=0)).astype(np.int64) ** 2).sum(1)
    most = np.repeat(np.maximum.reduceat(far, first), size)
    at = np.flatnonzero(far == most)
    return at[np.searchsorted(at, first)]


def _kept(
    um: NDArray[np.float64], first: Points, size: Points, anchors: NDArray[np.bool_], tolerance_um: float
) -> NDArray[np.bool_]:
    """Whether each vertex is kept: bool [N]. All spans between kept vertices are split at once, until none is left."""
    n = len(um)
    kept = anchors.copy()
    end = np.repeat(first + size, size)
    start = np.repeat(first, size)
    waiting = np.flatnonzero(~kept)
    while len(waiting):
        stay = np.append(np.flatnonzero(kept), n)
        at = np.searchsorted(stay, waiting)
        low, high = stay[at - 1], stay[at]
        high = np.where(high >= end[waiting], start[waiting], high)  # rings are closed: the first follows the last
        away = _distance(um[waiting], um[low], um[high])
        begins = np.append(True, low[1:] != low[:-1])
        group, of = np.flatnonzero(begins), np.cumsum(begins) - 1
        most = np.maximum.reduceat(away, group)
        top = np.flatnonzero((away == most[of]) & (away > tolerance_um))
        kept[waiting[top[np.flatnonzero(np.diff(of[top], prepend=-1))]]] = True
        waiting = waiting[(most[of] > tolerance_um) & ~kept[waiting]]
    return kept


def _distance(point: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances of points [N, 2] to segments: float64 [N]."""
    along, to = end - start, point - start
    length = np.maximum((along**2).sum(1), np.finfo(float).tiny)
    share = np.clip((to * along).sum(1) / length, 0, 1)
    return np.asarray(np.hypot(*(to - share[:, None] * along).T))


def _near(start: Points, end: Points) -> Iterator[tuple[tuple[Points, Points], tuple[Points, Points]]]:
    """Pairs of edges whose bounding boxes meet, in blocks: (start, end) of one and (start, end) of the other."""
    axis = int(np.argmax(np.ptp(start, axis=0)))  # fewer boxes overlap along the longer side
    order = np.argsort(np.minimum(start[:, axis], end[:, axis]), kind="stable")
    start, end = start[order], end[order]
    low, high = np.minimum(start, end), np.maximum(start, end)
    index = np.arange(len(start))
    count = np.searchsorted(low[:, axis], high[:, axis], "right") - index - 1
    total = np.cumsum(count)
    first = 0
    while first < len(start):
        last = max(first + 1, int(np.searchsorted(total, total[first] - count[first] + _PAIRS)))
        some = count[first:last]
        one = np.repeat(index[first:last], some)
        other = np.arange(len(one)) - np.repeat(np.cumsum(some) - some, some) + one + 1
        across = 1 - axis
        close = (low[one, across] <= high[other, across]) & (low[other, across] <= high[one, across])
        one, other = one[close], other[close]
        yield (start[one], end[one]), (start[other], end[other])
        first = last


def _meet(one: tuple[Points, Points], other: tuple[Points, Points]) -> NDArray[np.bool_]:
    """Whether two edges, whose boxes meet, share a point other than an end of both: bool [M]."""
    (a, b), (c, d) = one, other
    cross = (_side(a, b, c) * _side(a, b, d) <= 0) & (_side(c, d, a) * _side(c, d, b) <= 0)
    back = np.zeros(len(a), bool)
    joint = np.zeros(len(a), bool)
    for p, q, r in ((a, b, (c, d)), (b, a, (c, d)), (a, b, (d, c)), (b, a, (d, c))):
        same = (p == r[0]).all(1)
        joint |= same
        back |= same & (_side(p, q, r[1]) == 0) & (((q - p) * (r[1] - p)).sum(1) > 0)
    return np.where(joint, back, cross)


def _side(a: Points, b: Points, c: Points) -> Points:
    """The side of the line from a to b on which c is: -1, 0 or 1."""
    turn = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    return np.asarray(np.sign(turn))


def _crossings(points: Points, after: Points, asked: Points) -> Points:
    """Number of edges of other rings left of the vertices `asked`, each the upper left vertex of its ring."""
    xy = points[asked][np.argsort(points[asked, 1], kind="stable")]
    down = (points[:, 1] < points[after, 1])[:, None]
    upper, lower = np.where(down, points, points[after]), np.where(down, points[after], points)
    low, high = np.searchsorted(xy[:, 1], upper[:, 1]), np.searchsorted(xy[:, 1], lower[:, 1])
    out = np.zeros(len(xy), np.int64)
    for block in np.array_split(np.arange(len(points)), max(1, int((high - low).sum()) // _PAIRS)):
        count = (high - low)[block]
        edge = np.repeat(block, count)
        at = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - low[block], count)
        np.add.at(out, at[_side(upper[edge], lower[edge], xy[at]) < 0], 1)
    return out
