"""Decide which patches of a lattice are kept and which chunks of pixels they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Grid, Window, ceil_div
from wsipipe.store import CORRUPT, NOT_STORED, USABLE, PatchTable
from wsipipe.tissue.detect import TissueMask

Bits = NDArray[np.bool_]
"""One bit per chunk of a level: bool [rows, cols]."""


def plan_patches(grid: Grid, tissue: TissueMask, min_tissue: float) -> PatchTable:
    """The patches of `grid` with a tissue share of at least `min_tissue` (0..1) and above 0, row-major."""
    rows, cols = grid.rows, grid.cols
    cells = np.stack(np.divmod(np.arange(rows * cols, dtype=np.int32), np.int32(cols)), axis=1)
    share = tissue.fractions(cells.astype(np.int64) * grid.stride_px, (grid.patch_px, grid.patch_px))
    keep = (share >= min_tissue) & (share > 0)
    return PatchTable(grid, cells[keep], share[keep], np.full(int(keep.sum()), USABLE, np.uint8))


def plan_chunks(table: PatchTable, chunk_px: int) -> Bits:
    """The chunks touched by a patch or by the margin around it, one patch wide."""
    grid = table.grid
    width, height = grid.size_px
    rows, cols = ceil_div(height, chunk_px), ceil_div(width, chunk_px)
    first, last = _touched(table, grid.patch_px, chunk_px)
    # each patch adds a rectangle of ones: four corners, then a cumulative sum along each axis
    corners = np.zeros((rows + 1, cols + 1), np.int32)
    top, left = (np.clip(v, 0, n) for v, n in zip(first.T, (rows, cols), strict=True))
    bottom, right = (np.clip(v, 0, n) for v, n in zip(last.T, (rows, cols), strict=True))
    for y, x, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(corners, (y, x), sign)
    return np.asarray(corners.cumsum(0).cumsum(1)[:rows, :cols] > 0)


def with_status(
    table: PatchTable, stored: Bits, chunk_px: int, tissue: TissueMask, bad: Sequence[Window]
) -> PatchTable:
    """The table with the status of every patch.

    stored: the chunks that exist. bad: windows (working px) that could not be read.
    """
    grid = table.grid
    yx = np.stack(np.nonzero(~stored), axis=1).astype(np.int64)
    missing = np.zeros(stored.shape, bool)
    missing[~stored] = tissue.fractions(yx * chunk_px, (chunk_px, chunk_px)) > 0
    total = np.zeros((stored.shape[0] + 1, stored.shape[1] + 1), np.int32)
    total[1:, 1:] = missing.cumsum(0).cumsum(1)
    first, last = _touched(table, 0, chunk_px)
    (y1, x1), (y2, x2) = first.T, np.minimum(last, stored.shape).T
    incomplete = total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1] > 0
    status = np.where(incomplete, NOT_STORED, USABLE).astype(np.uint8)
    y, x = (table.cell.astype(np.int64) * grid.stride_px).T
    for w in bad:
        outside = (y >= w.y_px + w.height_px) | (y + grid.patch_px <= w.y_px)
        outside |= (x >= w.x_px + w.width_px) | (x + grid.patch_px <= w.x_px)
        status[~outside] = CORRUPT
    return replace(table, status=status)


def _touched(table: PatchTable, margin_px: int, chunk_px: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First chunk that each patch with its margin touches, and the one after the last: int64 [N, 2] (row, col)."""
    start = table.cell.astype(np.int64) * table.grid.stride_px
    first = np.maximum(start - margin_px, 0) // chunk_px
    return first, ceil_div(start + table.grid.patch_px + margin_px, chunk_px)
