"""Trace a mask that arrives in bands into exact polygons along its pixel edges; only open outlines stay in memory.

A piece is a 4-connected component of one value. Its outline is one ring for the exterior and one per hole. A ring never
visits a point twice, and two rings of a piece meet in points at most, so that every polygon is valid (OGC simple
features), even where pixels touch only at their corners.

Method. A vertex is a corner of a piece: of the 2 x 2 pixels around a lattice point, one belongs to it (convex), three
do (reflex), or two diagonal ones (two convex corners). In every lattice row, the sorted corners of a value are the two
ends of horizontal edges in turn, and in every column those of vertical edges: sorting links all vertices at once. Only
vertical edges are open at the lower end of a band; each is the end of a chain of vertices that later bands continue.
Runs in rows group the pixels into pieces. A ring that passes twice through a point, where a piece touches itself
diagonally, is cut there into the rings that touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wsipipe.export.rings import Ring, areas_of, cut, joined, key_of

PIXELS_AT_ONCE = 2**21
"""Pixels of a band processed at once: bounds the temporary arrays, which then fit in the cache."""

CORNERS_AT_ONCE = 2**17
"""Lattice points with corners linked at once; a noisy band is halved until it has fewer."""

Rope = Any
"""Vertices of an open chain: a Ring, or a list of Ropes, so that joining chains copies nothing."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One piece of a mask. `first_px` (x, y): its first pixel, row by row from the top; no two pieces share it.

    rings: the exterior, then the holes. In a right-handed plane (x, y) the exterior runs counter-clockwise and holes
    clockwise (RFC 7946); no three successive vertices are on a line.
    """

    value: int
    first_px: tuple[int, int]
    rings: tuple[Ring, ...]


@dataclass(eq=False)
class _Piece:
    """A piece that may continue below: its exterior, once closed, and the holes closed so far."""

    value: int
    first: tuple[int, int]
    outside: list[Ring] = field(default_factory=list)
    holes: list[Ring] = field(default_factory=list)

    def take(self, other: _Piece) -> None:
        """Merge with `other`, which turned out to be the same piece."""
        self.first = min(self.first, other.first)
        self.outside += other.outside
        self.holes += other.holes

    def outline(self) -> Outline:
        """The complete outline."""
        assert len(self.outside) == 1, "a piece has one exterior"
        self.holes.sort(key=lambda ring: (int(ring[0, 1]), int(ring[0, 0])))
        return Outline(self.value, self.first[::-1], (*self.outside, *self.holes))


@dataclass(frozen=True, eq=False)
class _Corners:
    """Corners of pieces in a band, row by row: arrays [N].

    y, x: lattice point, y in rows of the band. value, owner: the mask value and the flat index of a pixel of the piece
    at the corner. right, down: whether the horizontal edge leads right and the vertical one down. leaves_up_or_down:
    whether the outline (on screen the piece is on its right) continues along the vertical edge.
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    value: NDArray[np.int64]
    owner: NDArray[np.int64]
    right: NDArray[np.int64]
    down: NDArray[np.int64]
    leaves_up_or_down: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Ends:
    """Ends of open chains, arrays [A], two per chain: vertical edges that continue below the band.

    column: value * (width + 1) + x. chain: the number of its chain. tail: whether the outline runs down through it.
    """

    column: NDArray[np.int64]
    chain: NDArray[np.int64]
    tail: NDArray[np.bool_]

    def partner(self) -> NDArray[np.int64]:
        """Index of the other end of the same chain."""
        order = np.argsort(self.chain, kind="stable").reshape(-1, 2)
        out = np.empty(len(self.chain), np.int64)
        out[order] = order[:, ::-1]
        return out


def trace(bands: Iterable[NDArray[np.uint8]], width_px: int) -> Iterator[Outline]:
    """Yield the outline of every piece of a mask as soon as it is complete.

    bands: uint8 [h, width_px], from top to bottom, of any heights; 0 belongs to no piece. The outlines do not depend on
    the bands, only their order does.
    """
    tracer = _Tracer(width_px)
    rows = max(1, PIXELS_AT_ONCE // width_px)
    for band in bands:
        for first in range(0, len(band), rows):
            yield from tracer.feed(band[first : first + rows])
    yield from tracer.feed(np.zeros((1, width_px), np.uint8))


class _Tracer:
    """The state after some bands: open pieces, open chains, and the last row of pixels."""

    def __init__(self, width_px: int) -> None:
        self._width = width_px
        self._y = 0
        self._last_row = np.zeros(width_px + 2, np.uint8)  # with a pixel of 0 on either side
        self._last_pieces = np.zeros(0, np.int64)  # of the runs of the last row
        self._pieces: dict[int, _Piece] = {}
        self._chains: dict[int, Rope] = {}
        self._ends = _Ends(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
        self._made = 0  # number of the latest piece or chain

    def feed(self, band: NDArray[np.uint8]) -> list[Outline]:
        """Take the next band, uint8 [h, width]; returns the outlines that are complete."""
        pixels = np.zeros((len(band) + 1, self._width + 2), np.uint8)
        pixels[0], pixels[1:, 1:-1] = self._last_row, band
        if not pixels.any():
            self._y += len(band)
            return []
        steps = pixels[:, 1:] != pixels[:, :-1]
        points = _corner_points(pixels, steps)
        if len(points) > CORNERS_AT_ONCE and len(band) > 1:
            half = len(band) // 2
            return self.feed(band[:half]) + self.feed(band[half:])
        starts, ends = _runs(pixels, steps)
        piece_of_run = self._group(pixels, starts, ends)
        corners = _corners(pixels, points)
        closed, opened = self._follow(corners, len(band))
        self._keep(closed, piece_of_run[np.searchsorted(starts, corners.owner, "right") - 1])
        self._ends = opened
        in_last_row = starts >= len(band) * (self._width + 2)
        self._last_row, self._last_pieces = pixels[-1].copy(), piece_of_run[in_last_row]
        self._y += len(band)
        complete = set(self._pieces).difference(self._last_pieces.tolist())
        return [p.outline() for p in sorted((self._pieces.pop(i) for i in complete), key=lambda p: (p.first, p.value))]

    def _group(
        self, pixels: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The number of the piece of each run; merges pieces that meet and starts new ones."""
        flat, stride, n = pixels.reshape(-1), pixels.shape[1], len(starts)
        above, below = _touching(flat, starts, ends, stride)
        known, which = np.unique(self._last_pieces, return_inverse=True)
        one = np.concatenate([above, np.arange(len(which))])
        other = np.concatenate([below, n + which])
        links = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(n + len(known),) * 2)
        count, label = connected_components(links, directed=False)
        number = np.full(count, -1, np.int64)
        number[label[n:]] = known
        for old, new in zip(known.tolist(), number[label[n:]].tolist(), strict=True):
            if old != new:
                self._pieces[new].take(self._pieces.pop(old))
        labels, first = np.unique(label[:n], return_index=True)
        fresh = number[labels] < 0
        for at, run in zip(labels[fresh].tolist(), starts[first[fresh]].tolist(), strict=True):
            self._made += 1
            number[at] = self._made
            y, x = divmod(run, stride)
            self._pieces[self._made] = _Piece(int(flat[run]), (y + self._y - 1, x - 1))
        return np.asarray(number[label[:n]])

    def _keep(self, closed: Sequence[tuple[Ring, int]], piece_of_corner: NDArray[np.int64]) -> None:
        """Add closed rings, each with one of its corners, to their pieces; rings start at their upper left vertex."""
        rings, pieces = cut([ring for ring, _ in closed], self._width), piece_of_corner[[c for _, c in closed]].tolist()
        flat = [(ring, piece) for some, piece in zip(rings, pieces, strict=True) for ring in some]
        if not flat:
            return
        whole, first = joined([ring for ring, _ in flat])
        areas, key = areas_of(whole, first), key_of(whole, self._width)
        lowest = np.minimum.reduceat(key, first)
        top = np.flatnonzero(key == np.repeat(lowest, np.diff(first, append=len(key)))) - first
        for (ring, piece), is_outside, at in zip(flat, (areas > 0).tolist(), top.tolist(), strict=True):
            turned = np.concatenate((ring[at:], ring[:at]))
            (self._pieces[piece].outside if is_outside else self._pieces[piece].holes).append(turned)

    def _follow(self, corners: _Corners, rows: int) -> tuple[list[tuple[Ring, int]], _Ends]:
        """Follow the outlines; returns the closed rings, each with one of its corners, and the ends that remain open.

        Nodes are the corners, then the ends that were open before.
        """
        n, ends = len(corners.x), self._ends
        follower, column = self._links(corners, rows)
        lonely = np.ones(n + len(ends.column), bool)
        lonely[follower[follower >= 0]] = False  # no predecessor: a new chain starts
        lonely[n:] &= follower[follower[n:]] >= 0  # a chain with two free ends stays as it is
        begun = np.flatnonzero(lonely).tolist()
        nodes, first = _walks(follower, begun, n)
        ropes = self._ropes(nodes, first, np.stack([corners.x, corners.y + self._y], 1).astype(np.int32))
        last = np.append(first[1:], len(nodes)) - 1
        numbers = self._made + 1 + np.arange(len(begun))
        self._made += len(begun)
        self._chains.update(zip(numbers.tolist(), ropes, strict=False))
        still = np.ones(len(ends.column), bool)
        still[nodes[nodes >= n] - n] = False
        heads, tails = column[nodes[first[: len(begun)]]], column[nodes[last[: len(begun)]]]
        opened = _Ends(
            np.concatenate([ends.column[still], heads, tails]),
            np.concatenate([ends.chain[still], numbers, numbers]),
            np.concatenate([ends.tail[still], np.zeros(len(begun), bool), np.ones(len(begun), bool)]),
        )
        rings = [rope if isinstance(rope, np.ndarray) else np.concatenate(_flat(rope)) for rope in ropes[len(begun) :]]
        return list(zip(rings, nodes[first[len(begun) :]].tolist(), strict=True)), opened

    def _links(self, corners: _Corners, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The successor of each node, -1 where the outline continues below the band; and the column of each node."""
        n, ends, side = len(corners.x), self._ends, self._width + 1
        level = np.empty(n, np.int64)
        order = np.argsort(((corners.value * rows + corners.y) * side + corners.x) * 2 + corners.right)
        level[order[::2]], level[order[1::2]] = order[1::2], order[::2]
        column = np.concatenate([corners.value * side + corners.x, ends.column])
        y = np.concatenate([corners.y + 1, np.zeros(len(ends.column), np.int64)])
        down = np.concatenate([corners.down, np.ones(len(ends.column), np.int64)])
        order = np.argsort((column * (rows + 1) + y) * 2 + down)
        upper = np.flatnonzero((down[order[:-1]] == 1) & (down[order[1:]] == 0))
        upright = np.full(len(column), -1, np.int64)
        upright[order[upper]], upright[order[upper + 1]] = order[upper + 1], order[upper]
        assert (upright[:n][corners.down == 0] >= 0).all(), "every edge from above has a start"
        return np.concatenate(
            [
                np.where(corners.leaves_up_or_down, upright[:n], level),
                np.where(ends.tail, upright[n:], n + ends.partner()),  # from the head of a chain to its tail
            ]
        ), column

    def _ropes(self, nodes: NDArray[np.int64], first: NDArray[np.int64], xy: Ring) -> list[Rope]:
        """The vertices along each walk; open chains on it are joined to it."""
        n = len(xy)
        vertices = xy[np.minimum(nodes, n - 1)]
        joints = np.flatnonzero(nodes >= n)[::2]  # a chain is two nodes: head, tail
        chains = self._ends.chain[nodes[joints] - n].tolist()
        walk_of_joint = (np.searchsorted(first, joints, "right") - 1).tolist()
        begin, end = first.tolist(), np.append(first, len(nodes))[1:].tolist()
        ropes: list[Rope] = [None] * len(begin)
        for walk, joint, chain in zip(walk_of_joint, joints.tolist(), chains, strict=True):
            rope = ropes[walk] = ropes[walk] or []
            rope += [vertices[begin[walk] : joint].copy(), self._chains.pop(chain)]
            begin[walk] = joint + 2
        for walk, (rope, a, b) in enumerate(zip(ropes, begin, end, strict=True)):
            rest = vertices[a:b].copy()  # a view would keep all vertices of the band in memory
            ropes[walk] = rest if rope is None else [*rope, rest]
        return ropes


def _corner_points(pixels: NDArray[np.uint8], steps: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lattice points where some value has a corner, as flat indices into [rows, width + 1].

    These are the points where neither both rows of the 2 x 2 pixels nor both columns are of one value each.
    """
    jumps = pixels[1:] != pixels[:-1]
    return np.flatnonzero((steps[1:] | steps[:-1]) & (jumps[:, 1:] | jumps[:, :-1]))


def _corners(pixels: NDArray[np.uint8], points: NDArray[np.int64]) -> _Corners:
    """All corners at `points`; pixel 0, 1, 2, 3 of a point is the one up left, up right, down left, down right."""
    stride = pixels.shape[1]
    y, x = np.divmod(points, stride - 1)
    at = (y * stride + x)[:, None] + (0, 1, stride, stride + 1)
    own = pixels.reshape(-1)[at]
    beside, over, across = (own[:, np.arange(4) ^ k] == own for k in (1, 2, 3))
    reflex = beside & over & ~across
    point, q = np.nonzero((reflex | ~(beside | over)) & (own != 0))
    turned = reflex[point, q].astype(np.int64)
    right, down = (q & 1) ^ turned, (q >> 1) ^ turned
    return _Corners(
        y[point],
        x[point],
        own[point, q].astype(np.int64),
        at[point, q],
        right,
        down,
        ((q & 1) ^ (q >> 1) ^ turned) == 1,
    )


def _runs(pixels: NDArray[np.uint8], steps: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and end, as flat indices, of all runs of one value except 0 in the rows."""
    changes = np.flatnonzero(steps)
    starts = changes + changes // steps.shape[1] + 1
    kept = np.flatnonzero(pixels.reshape(-1)[starts])  # never the last: rows end with 0
    return starts[kept], starts[kept + 1]


def _touching(
    flat: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (upper, lower) of runs of one value that share a pixel edge."""
    low, high = np.searchsorted(ends, starts - stride, "right"), np.searchsorted(starts, ends - stride, "left")
    count = high - low
    lower = np.repeat(np.arange(len(starts)), count)
    upper = np.arange(len(lower)) - np.repeat(np.cumsum(count) - count - low, count)
    same = flat[starts[upper]] == flat[starts[lower]]
    return upper[same], lower[same]


def _walks(
    follower: NDArray[np.int64], begun: Sequence[int], corners: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The nodes of all walks along the outlines, one walk after the other, and where each starts.

    First the walks from the nodes `begun` to the lower end of the band, then those around closed rings.
    """
    following, seen = follower.tolist(), bytearray(len(follower))
    path, first = list[int](), list[int]()

    def walk(node: int) -> None:
        first.append(len(path))
        while node >= 0 and not seen[node]:
            seen[node] = 1
            path.append(node)
            node = following[node]

    for node in begun:
        walk(node)
    node = seen.find(0, 0, corners)
    while node >= 0:
        walk(node)
        node = seen.find(0, node, corners)
    return np.array(path, np.int64), np.array(first, np.int64)


def _flat(rope: Rope) -> list[Ring]:
    """The parts of a rope in order."""
    out, waiting = [], [rope]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part[::-1]
        else:
            out.append(part)
    return out
