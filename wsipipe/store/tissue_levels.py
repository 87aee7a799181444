"""labels/tissue at every level, made straight from the coarse view in which tissue was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import LEVEL_FACTOR, Window
from wsipipe.labels import IGNORE
from wsipipe.store.shards import ArraySpec, Cell

TISSUE_VALUES = {0: "glass", 1: "tissue", IGNORE: "invalid"}
"""Values of `labels/tissue`; invalid: the slide has no readable pixels there."""


@dataclass(frozen=True)
class TissueLevels:
    """values: uint8 [h, w] of 0 and 1, one for `step_px` working px. invalid: windows (working px) without pixels."""

    values: NDArray[np.uint8]
    step_px: int
    invalid: Sequence[Window] = ()
    _flat: dict[tuple[int, int], bytes] = field(default_factory=dict, repr=False, compare=False)

    def chunks(self, spec: ArraySpec, level: int, shard: Cell) -> Iterator[tuple[Cell, tuple[bytes]]]:
        """The chunks of one shard that hold anything but glass, encoded, row-major.

        A chunk of one value (most of them) is encoded once and written many times.
        """
        n, f = spec.chunk_px, LEVEL_FACTOR**level
        cells = spec.chunks_of_shard(shard)
        (row0, col0), (row1, col1) = cells[0], cells[-1]
        rows, cols = self._source(row0, row1, n * f, f, 0), self._source(col0, col1, n * f, f, 1)
        lowest, highest = (_over(self.values, rows, cols, extreme) for extreme in (np.minimum, np.maximum))
        for row, col in cells:
            i, j = row - row0, col - col0
            holes = self._holes(Window(col * n, row * n, n, n), f) if self.invalid else []
            if lowest[i, j] == highest[i, j] and not holes:
                if highest[i, j]:
                    yield (row, col), (self._encoded(spec, int(highest[i, j])),)
                continue
            y, x = rows[i], cols[j]
            block = self.values[y[0] : y[-1] + 1, x[0] : x[-1] + 1].take(x - x[0], axis=1).take(y - y[0], axis=0)
            for hole in holes:
                block[hole] = IGNORE
            yield (row, col), (spec.encode(block),)

    def _source(self, first: int, last: int, side_px: int, factor: int, axis: int) -> NDArray[np.intp]:
        """Indices into `values` for the pixels of chunks first..last along one axis: int [chunks, pixels].

        side_px: of a chunk, in working px. Of each pixel, `factor` working px wide, the value at its centre counts.
        """
        centres = np.arange(first * side_px, (last + 1) * side_px, factor) + factor // 2
        held = np.minimum(centres // self.step_px, self.values.shape[axis] - 1)
        return np.asarray(held.reshape(last - first + 1, -1), np.intp)

    def _holes(self, chunk: Window, factor: int) -> list[tuple[slice, slice]]:
        """The parts of a chunk (px of its level) that invalid windows cover, grown to whole pixels."""
        found = []
        for w in self.invalid:
            y1, x1 = (max(0, v // factor - o) for v, o in ((w.y_px, chunk.y_px), (w.x_px, chunk.x_px)))
            y2 = min(chunk.height_px, -(-(w.y_px + w.height_px) // factor) - chunk.y_px)
            x2 = min(chunk.width_px, -(-(w.x_px + w.width_px) // factor) - chunk.x_px)
            if y1 < y2 and x1 < x2:
                found.append((slice(y1, y2), slice(x1, x2)))
        return found

    def _encoded(self, spec: ArraySpec, value: int) -> bytes:
        key = (spec.chunk_px, value)
        if key not in self._flat:
            self._flat[key] = spec.encode(np.full(spec.chunk_shape, value, np.uint8))
        return self._flat[key]


def _over(
    values: NDArray[np.uint8], rows: NDArray[np.intp], cols: NDArray[np.intp], extreme: np.ufunc
) -> NDArray[np.uint8]:
    """The extreme value that each chunk holds: uint8 [chunk rows, chunk cols]; index rows and columns ascend."""
    part = values[rows[0, 0] : rows[-1, -1] + 1, cols[0, 0] : cols[-1, -1] + 1]
    part = np.pad(part, ((0, 1), (0, 1)), mode="edge")  # so that the end of the last chunk is an index too
    for axis, held in enumerate((rows - rows[0, 0], cols - cols[0, 0])):
        ends = np.stack([held[:, 0], held[:, -1] + 1], axis=1).ravel()
        part = extreme.reduceat(part, ends, axis=axis).take(np.arange(0, len(ends), 2), axis=axis)
    return part
