"""labels/tissue at every level, computed from the coarse mask of tissue detection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import LEVEL_FACTOR, Window, ceil_div
from wsipipe.labels import Tissue
from wsipipe.store.shards import ArraySpec, Cell

TISSUE_VALUES = {int(value): value.name.lower() for value in Tissue}
"""Values of `labels/tissue` and their names; invalid: the slide has no readable pixels there."""

MIXED = 2
"""Marks a chunk that contains both glass and tissue."""


@dataclass(frozen=True)
class TissueLevels:
    """The tissue mask of a slide.

    values: uint8 [h, w] of 0 and 1, one per `step_px` x `step_px` working px. invalid: windows (working px) without
    pixels.
    """

    values: NDArray[np.uint8]
    step_px: int
    invalid: Sequence[Window] = ()
    _flat: dict[tuple[int, int], bytes] = field(default_factory=dict, repr=False, compare=False)
    _levels: dict[int, _Level] = field(default_factory=dict, repr=False, compare=False)

    def chunks(self, spec: ArraySpec, level: int, shard: Cell) -> Iterator[tuple[Cell, tuple[bytes]]]:
        """The encoded chunks of one shard, row-major; chunks of glass alone are left out.

        Most chunks have one value; these are encoded once and written many times.
        """
        n, f = spec.chunk_px, LEVEL_FACTOR**level
        if level not in self._levels:
            self._levels[level] = _Level.of(self.values, spec, f, self.step_px)
        at = self._levels[level]
        for row, col in spec.chunks_of_shard(shard):
            value = at.flat[row, col]
            holes = self._holes(Window(col * n, row * n, n, n), f) if self.invalid else []
            if value != MIXED and not holes:
                if value:
                    yield (row, col), (self._encoded(spec, int(value)),)
                continue
            y, x = at.rows[row], at.cols[col]
            block = self.values[y[0] : y[-1] + 1, x[0] : x[-1] + 1].take(x - x[0], axis=1).take(y - y[0], axis=0)
            for hole in holes:
                block[hole] = Tissue.INVALID
            yield (row, col), (spec.encode(block),)

    def _holes(self, chunk: Window, factor: int) -> list[tuple[slice, slice]]:
        """The parts of a chunk (px of its level) that invalid windows touch."""
        found = []
        for w in self.invalid:
            y1, x1 = (max(0, v // factor - o) for v, o in ((w.y_px, chunk.y_px), (w.x_px, chunk.x_px)))
            y2 = min(chunk.height_px, ceil_div(w.y_px + w.height_px, factor) - chunk.y_px)
            x2 = min(chunk.width_px, ceil_div(w.x_px + w.width_px, factor) - chunk.x_px)
            if y1 < y2 and x1 < x2:
                found.append((slice(y1, y2), slice(x1, x2)))
        return found

    def _encoded(self, spec: ArraySpec, value: int) -> bytes:
        key = (spec.chunk_px, value)
        if key not in self._flat:
            self._flat[key] = spec.encode(np.full(spec.chunk_shape, value, np.uint8))
        return self._flat[key]


@dataclass(frozen=True)
class _Level:
    """One level of the mask.

    rows, cols: int [chunks, pixels], the index into `values` of every pixel of each row and column of chunks.
    flat: uint8 [chunk rows, chunk cols], the only value of a chunk, or MIXED.
    """

    rows: NDArray[np.intp]
    cols: NDArray[np.intp]
    flat: NDArray[np.uint8]

    @classmethod
    def of(cls, values: NDArray[np.uint8], spec: ArraySpec, factor: int, step_px: int) -> _Level:
        """Sample `values` at the centre of every pixel, which is `factor` working px wide."""
        rows, cols = (
            np.minimum(
                (np.arange(ceil_div(side, spec.chunk_px) * spec.chunk_px) * factor + factor // 2) // step_px, have - 1
            )
            for side, have in zip(spec.shape, values.shape, strict=True)
        )
        rows, cols = rows.reshape(-1, spec.chunk_px), cols.reshape(-1, spec.chunk_px)
        return cls(rows, cols, np.stack([_flat(values[y[0] : y[-1] + 1], cols) for y in rows]))


def _flat(band: NDArray[np.uint8], cols: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The value of each chunk in one row of chunks, from its `band` of values: uint8 [chunks] of 0, 1 or MIXED."""
    ends = np.stack([cols[:, 0], cols[:, -1] + 1], axis=1).ravel()
    low, high = (
        extreme.reduceat(np.append(line, line[-1]), ends)[::2]  # the end of the last chunk must be an index too
        for extreme, line in ((np.minimum, band.min(0)), (np.maximum, band.max(0)))
    )
    return np.where(low == high, low, MIXED).astype(np.uint8)
