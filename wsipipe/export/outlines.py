"""Trace a mask that arrives in bands into polygons along its pixel edges, exactly, holding only what is still open.

A piece is a 4-connected set of pixels of one value. Its outline is one ring for the outside and one for each hole; a
ring never visits a point twice, and two rings of a piece meet in points at most, so that every polygon is valid (OGC
simple features) also where pixels touch by their corners only.

How. A vertex is a corner of a piece: of the 2 x 2 pixels round a lattice point, one alone (convex), three (reflex), or
two that touch diagonally (two convex corners). In every lattice row the corners of a value, sorted, are the two ends of
horizontal edges in turn, and in every column those of vertical edges: sorting links all vertices at once. What is open
at the lower end of a band are vertical edges; they wait, each an end of a chain of vertices, for the bands to come.
Pixels are grouped into pieces by their runs in rows. A ring that passes twice through a point, where a piece touches
itself diagonally, is cut there into the rings that touch.
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
"""Pixels of a band that are looked at together: bounds the temporary arrays, and they stay in the cache."""

CORNERS_AT_ONCE = 2**17
"""Lattice points with corners that are linked together; a noisy band is halved until it has fewer."""

Rope = Any
"""Vertices of an open chain: a Ring, or a list of Ropes, so that joining chains copies nothing."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One piece of a mask. `first_px` (x, y): its first pixel, row by row from the top; no two pieces share it.

    rings: the outside, then the holes. Coordinates taken as (x, y) of a right-handed plane, the outside runs
    counter-clockwise and holes clockwise (RFC 7946); no three vertices in a row are on a line.
    """

    value: int
    first_px: tuple[int, int]
    rings: tuple[Ring, ...]


@dataclass(eq=False)
class _Piece:
    """A piece whose last pixel is not known yet: the outside, once it is closed, and the holes closed so far."""

    value: int
    first: tuple[int, int]
    outside: list[Ring] = field(default_factory=list)
    holes: list[Ring] = field(default_factory=list)

    def take(self, other: _Piece) -> None:
        """Be one with `other`, which turned out to be the same piece."""
        self.first = min(self.first, other.first)
        self.outside += other.outside
        self.holes += other.holes

    def outline(self) -> Outline:
        """As it is handed out."""
        assert len(self.outside) == 1, "a piece has one outside"
        self.holes.sort(key=lambda ring: (int(ring[0, 1]), int(ring[0, 0])))
        return Outline(self.value, self.first[::-1], (*self.outside, *self.holes))


@dataclass(frozen=True, eq=False)
class _Corners:
    """Corners of pieces in a band, row by row: arrays [N].

    y, x: lattice point, y in rows of the band. value, owner: the mask value and the flat index of a pixel of the piece
    at the corner. right, down: where the horizontal and the vertical edge lead to from here. leaves_up_or_down: whether
    the outline, the piece on its right as the picture is seen, goes on along the vertical edge.
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
    """Ends of open chains, arrays [A], two of each chain: vertical edges that go on below the band.

    column: value * (width + 1) + x. chain: whose end it is. tail: whether the outline runs down through it.
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
    """The outlines of all pieces of a mask, each handed out as soon as it is complete.

    bands: uint8 [h, width_px], from the top down, of any heights; 0 belongs to no piece. Same mask, same outlines,
    whatever the bands; only the order depends on them.
    """
    tracer = _Tracer(width_px)
    rows = max(1, PIXELS_AT_ONCE // width_px)
    for band in bands:
        for first in range(0, len(band), rows):
            yield from tracer.feed(band[first : first + rows])
    yield from tracer.feed(np.zeros((1, width_px), np.uint8))


class _Tracer:
    """What is known after some bands: the pieces and the chains that are open, and the last row of pixels."""

    def __init__(self, width_px: int) -> None:
        self._width = width_px
        self._y = 0
        self._last_row = np.zeros(width_px + 2, np.uint8)  # a pixel of 0 at either side
        self._last_pieces = np.zeros(0, np.int64)  # of the runs of the last row
        self._pieces: dict[int, _Piece] = {}
        self._chains: dict[int, Rope] = {}
        self._ends = _Ends(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
        self._made = 0  # pieces and chains so far; the next one's number

    def feed(self, band: NDArray[np.uint8]) -> list[Outline]:
        """Go on with uint8 [h, width]; returns the pieces that are complete."""
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
        """The number of the piece of each run; pieces that meet become one, new ones are begun."""
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
        """Give closed rings, each with one of its corners, to their pieces, from their upper left vertex on."""
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
        """Walk along the outlines: the rings that close, each with one of its corners, and the ends still open.

        Nodes of the walk are the corners and then the ends that were open before.
        """
        n, ends = len(corners.x), self._ends
        follower, column = self._links(corners, rows)
        lonely = np.ones(n + len(ends.column), bool)
        lonely[follower[follower >= 0]] = False  # nothing leads there: a new chain begins
        lonely[n:] &= follower[follower[n:]] >= 0  # a chain of which neither end met anything stays as it is
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
        """The node that follows each node, or -1 where the outline goes on below the band; and the node's column."""
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
        assert (upright[:n][corners.down == 0] >= 0).all(), "every edge that comes from above began somewhere"
        return np.concatenate(
            [
                np.where(corners.leaves_up_or_down, upright[:n], level),
                np.where(ends.tail, upright[n:], n + ends.partner()),  # through a chain from its head to its tail
            ]
        ), column

    def _ropes(self, nodes: NDArray[np.int64], first: NDArray[np.int64], xy: Ring) -> list[Rope]:
        """The vertices along each walk; chains that it runs through are taken out of those that are open."""
        n = len(xy)
        vertices = xy[np.minimum(nodes, n - 1)]
        joints = np.flatnonzero(nodes >= n)[::2]  # each chain is two nodes: head, tail
        chains = self._ends.chain[nodes[joints] - n].tolist()
        walk_of_joint = (np.searchsorted(first, joints, "right") - 1).tolist()
        begin, end = first.tolist(), np.append(first, len(nodes))[1:].tolist()
        ropes: list[Rope] = [None] * len(begin)
        for walk, joint, chain in zip(walk_of_joint, joints.tolist(), chains, strict=True):
            rope = ropes[walk] = ropes[walk] or []
            rope += [vertices[begin[walk] : joint].copy(), self._chains.pop(chain)]
            begin[walk] = joint + 2
        for walk, (rope, a, b) in enumerate(zip(ropes, begin, end, strict=True)):
            rest = vertices[a:b].copy()  # lest a few vertices hold all those of the band
            ropes[walk] = rest if rope is None else [*rope, rest]
        return ropes


def _corner_points(pixels: NDArray[np.uint8], steps: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lattice points at which some value has a corner, as flat indices into [rows, width + 1].

    None has, exactly where both rows of the 2 x 2 pixels are of one value each, or both columns are.
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
    """First pixel and end, flat indices, of all runs of one value but 0 in the rows."""
    changes = np.flatnonzero(steps)
    starts = changes + changes // steps.shape[1] + 1
    kept = np.flatnonzero(pixels.reshape(-1)[starts])  # never the last: rows end with 0
    return starts[kept], starts[kept + 1]


def _touching(
    flat: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (upper, lower) of runs of one value that share an edge of a pixel."""
    low, high = np.searchsorted(ends, starts - stride, "right"), np.searchsorted(starts, ends - stride, "left")
    count = high - low
    lower = np.repeat(np.arange(len(starts)), count)
    upper = np.arange(len(lower)) - np.repeat(np.cumsum(count) - count - low, count)
    same = flat[starts[upper]] == flat[starts[lower]]
    return upper[same], lower[same]


def _walks(
    follower: NDArray[np.int64], begun: Sequence[int], corners: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Nodes of all walks along the outlines, one after the other, and where each begins.

    First those from the nodes `begun` until the outline goes on below the band, then those round the rings.
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
    """The parts of a rope in their order."""
    out, waiting = [], [rope]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part[::-1]
        else:
            out.append(part)
    return out
