"""Plan a store before a pixel is written: which patches are kept, and which chunks must exist for them."""

from __future__ import annotations

import numpy as np

from wsipipe.geometry import Grid, Window
from wsipipe.slides.tissue import TissueMask
from wsipipe.store import PatchTable

Cell = tuple[int, int]


def plan_patches(grid: Grid, tissue: TissueMask, min_tissue: float) -> PatchTable:
    """The patches of `grid` with at least `min_tissue` (0..1) of tissue, none of it empty."""
    cells = np.array([(r, c) for r, c, _ in grid.windows()], np.int32).reshape(-1, 2)
    share = tissue.fractions(cells.astype(np.int64) * grid.stride_px, (grid.patch_px, grid.patch_px))
    keep = (share >= min_tissue) & (share > 0)
    return PatchTable(grid, cells[keep], share[keep], np.zeros(int(keep.sum()), np.uint8))


def plan_chunks(table: PatchTable, chunk_px: int, shard_px: int) -> dict[Cell, list[Cell]]:
    """Chunks that any patch, grown by one patch of margin, touches: shard -> row-major chunk cells."""
    grid = table.grid
    width, height = grid.size_px
    wanted = np.zeros((-(-height // chunk_px), -(-width // chunk_px)), bool)
    for window in table.windows:
        rows, cols = _touched(window.grown(grid.patch_px), chunk_px)
        wanted[rows, cols] = True
    n = shard_px // chunk_px
    chunks: dict[Cell, list[Cell]] = {}
    for row, col in np.argwhere(wanted).tolist():
        chunks.setdefault((row // n, col // n), []).append((row, col))
    return chunks


def _touched(window: Window, chunk_px: int) -> tuple[slice, slice]:
    rows = slice(max(0, window.y_px // chunk_px), max(0, -(-(window.y_px + window.height_px) // chunk_px)))
    cols = slice(max(0, window.x_px // chunk_px), max(0, -(-(window.x_px + window.width_px) // chunk_px)))
    return rows, cols
