"""Weighted sums of windows over a rectangle of a map, emitted as soon as no later window can touch them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Window

BAND_ROWS = 64
"""Approximate number of rows emitted at once; bounds the memory of the steps that follow."""

_TINY = np.float32(1e-30)  # below every sum of weights, so that 0 / 0 becomes 0


@dataclass(frozen=True, eq=False)
class Band:
    """Finished pixels of a map from (x_px, y_px) on.

    values: float32 [C, h, w], the weighted mean over the windows, 0 where none reached. known: bool [h, w], whether any
    did.
    """

    x_px: int
    y_px: int
    values: NDArray[np.float32]
    known: NDArray[np.bool_]


class WindowAccumulator:
    """The sums of one rectangle, `area`. Each pixel is sum(w p) / sum(w) over the windows that cover it.

    Windows come row by row, each row from left to right, so that the terms of a pixel are added in the same order
    whatever the rectangle: two rectangles agree to the last bit where they overlap. Rows are emitted in whole cells
    of `cell_px`, counted from the map's origin, on which the edges of `area` should lie. Only the rows that one window
    spans are held: float32 [C + 1, window + cell - 1, width of the area].
    """

    def __init__(self, area: Window, channels: int, weight: NDArray[np.float32], cell_px: int = 1) -> None:
        self.area, self.cell_px, self.weight = area, cell_px, weight
        self._rows = min(len(weight) + cell_px - 1, area.height_px)  # of a ring buffer: row y lies at (y - top) % rows
        self._total = np.zeros((channels, self._rows, area.width_px), np.float32)
        self._norm = np.zeros((self._rows, area.width_px), np.float32)
        self._product = np.empty((channels, *weight.shape), np.float32)
        self.next_px = area.y_px
        """The first row that has not been emitted."""
        self._reached = area.y_px  # rows from here on have met no window
        self._across = (area.width_px, 0)  # columns of the area that windows have met

    def add(self, window: Window, p: NDArray[np.float32]) -> None:
        """Add the output of a network for a window: float32 [C, side, side]; the rows above it must have been taken."""
        area, side = self.area, len(self.weight)
        y1, y2 = max(window.y_px, area.y_px), min(window.y_px + side, area.y_px + area.height_px)
        x1, x2 = max(window.x_px, area.x_px), min(window.x_px + side, area.x_px + area.width_px)
        if y1 >= y2 or x1 >= x2:
            raise ValueError(f"{window} does not touch {area}")
        if y1 < self.next_px or y2 > self.next_px + self._rows:
            raise ValueError(f"{window} is out of order: rows before {self.next_px} have been emitted")
        product = np.multiply(p, self.weight, out=self._product)
        cols, columns = slice(x1 - window.x_px, x2 - window.x_px), slice(x1 - area.x_px, x2 - area.x_px)
        for y, ring in self._ring(y1, y2):
            rows = slice(y - window.y_px, y - window.y_px + ring.stop - ring.start)
            self._total[:, ring, columns] += product[:, rows, cols]
            self._norm[ring, columns] += self.weight[rows, cols]
        self._reached = max(self._reached, y2)
        self._across = min(self._across[0], columns.start), max(self._across[1], columns.stop)

    def take(self, until_px: int) -> Iterator[Band]:
        """The finished rows above `until_px`, where later windows begin; parts without any window are left out."""
        area, c = self.area, self.cell_px
        bottom = area.y_px + area.height_px
        until = bottom if until_px >= bottom else until_px // c * c
        left, right = self._across[0] // c * c, min(-(-self._across[1] // c) * c, area.width_px)
        step, last = max(1, BAND_ROWS // c) * c, min(until, -(-self._reached // c) * c)
        while self.next_px < last:
            edge = self.next_px // c * c + step
            yield from self._bands(self.next_px, min(edge, last), slice(left, right))
        self.next_px = max(self.next_px, until)
        if self.next_px >= self._reached:
            self._across = (area.width_px, 0)

    def _bands(self, y1: int, y2: int, columns: slice) -> Iterator[Band]:
        """The rows [y1, y2), whose place in the ring buffer is freed."""
        shape = (y2 - y1, columns.stop - columns.start)
        values, norm = np.empty((len(self._total), *shape), np.float32), np.empty(shape, np.float32)
        for y, ring in self._ring(y1, y2):
            rows = slice(y - y1, y - y1 + ring.stop - ring.start)
            values[:, rows], norm[rows] = self._total[:, ring, columns], self._norm[ring, columns]
            self._total[:, ring, columns] = 0
            self._norm[ring, columns] = 0
        self.next_px = y2
        known = norm > 0
        values /= np.maximum(norm, _TINY, out=norm)
        yield Band(self.area.x_px + columns.start, y1, values, known)

    def _ring(self, y1: int, y2: int) -> Iterator[tuple[int, slice]]:
        """Rows [y1, y2) as runs of the ring: (first row, place)."""
        while y1 < y2:
            first = (y1 - self.area.y_px) % self._rows
            n = min(y2 - y1, self._rows - first)
            yield y1, slice(first, first + n)
            y1 += n


def argmax_mask(band: Band, nothing: int) -> NDArray[np.uint8]:
    """The channel with the highest value, the first among equals: uint8 [h, w]; `nothing` where no window lay."""
    best, mask = band.values[0].copy(), np.zeros(band.known.shape, np.uint8)
    for k, values in enumerate(band.values[1:], 1):
        np.copyto(mask, np.uint8(k), where=values > best)
        np.maximum(best, values, out=best)
    mask[~band.known] = nothing
    return mask


def cell_means(band: Band, cell_px: int, first: int = 0) -> NDArray[np.float32]:
    """Mean over the known pixels of each square of `cell_px`, 0 where there are none: float32 [C - first, rows, cols].

    The band starts on a square's edge. The channels before `first` are left out. Rows are added before columns.
    """
    total = _cell_sums(band.values[first:], cell_px)
    count = _cell_sums(band.known.astype(np.float32)[None], cell_px)
    return np.asarray(total / np.maximum(count, 1), np.float32)


def _cell_sums(values: NDArray[np.float32], cell_px: int) -> NDArray[np.float32]:
    """Sum over each square of `cell_px`, those at the far edges as large as they are: [C, h, w] -> [C, rows, cols].

    Adds whole rows, then whole columns: many times as fast as numpy's own sums over short runs.
    """
    for axis in (1, 2):
        every = [
            values[(slice(None),) * axis + (slice(i, None, cell_px),)] for i in range(min(cell_px, values.shape[axis]))
        ]
        total = every[0].copy()
        for part in every[1:]:
            total[(slice(None),) * axis + (slice(part.shape[axis]),)] += part
        values = total
    return values
