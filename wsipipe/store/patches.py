"""Patch tables: which patches of a lattice are kept, with their tissue and whether they can be read."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.runtime.atomic import swap
from wsipipe.runtime.digest import digest
from wsipipe.store import layout

USABLE, CORRUPT, NOT_STORED = 0, 1, 2
"""Status of a patch."""


@dataclass(frozen=True)
class PatchTable:
    """The patches kept of one lattice: cell int32 [N, 2] (row, col), tissue float32 [N] 0..1, status uint8 [N].

    Status is `USABLE`, `CORRUPT` (touches a tile of the slide that cannot be read) or `NOT_STORED` (touches tissue
    whose pixels the store does not hold); only usable patches take part downstream.
    """

    grid: Grid
    cell: NDArray[np.int32]
    tissue: NDArray[np.float32]
    status: NDArray[np.uint8]

    @property
    def windows(self) -> list[Window]:
        """The usable patches as windows."""
        return [self.grid.window(int(r), int(c)) for r, c in self.cell[self.status == USABLE]]


def read_patches(store: Path, grid: Grid) -> PatchTable:
    """The patch table of the lattice of `grid`; StoreError if the store has none."""
    path = _folder(store, grid)
    if not path.exists():
        raise StoreError(f"{store}: no patches of {grid.patch_px} px every {grid.stride_px} px; tile with these")
    cell, tissue, status = layout.read_table(path, ("cell", "tissue", "status"))
    return PatchTable(grid, cell, tissue, status)


def patches_attributes(store: Path, grid: Grid) -> dict[str, Any]:
    """What is noted of the patch table of a lattice: `digest` of what it was made from, `content` of its own; or {}."""
    path = _folder(store, grid)
    return dict(layout.read_attributes(path).get("wsipipe", {})) if path.exists() else {}


def write_patches(store: Path, table: PatchTable, made_of: str) -> None:
    """Write a patch table, in the place of another of its lattice."""
    path = _folder(store, table.grid)
    columns = {"cell": table.cell, "tissue": table.tissue, "status": table.status}
    aside = store.with_name(f".{store.name}.patches.{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    content = digest(made_of, *(hashlib.sha256(c.tobytes()).hexdigest() for c in (table.cell, table.status)))
    attributes = {"kind": "patches", "grid": table.grid.to_dict(), "digest": made_of, "content": content}
    layout.create_table(aside, columns, {"wsipipe": attributes})
    swap(aside, path)


def _folder(store: Path, grid: Grid) -> Path:
    return store / "patches" / f"{grid.patch_px}_{grid.stride_px}"
