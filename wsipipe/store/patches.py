"""Patch tables: the patches of a lattice that are kept, with their tissue share and status."""

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
from wsipipe.runtime.atomic import partial_path, replace_folder
from wsipipe.runtime.digest import digest
from wsipipe.store import layout

USABLE, CORRUPT, NOT_STORED = 0, 1, 2
"""Status of a patch."""


@dataclass(frozen=True)
class PatchTable:
    """The patches kept of one lattice: cell int32 [N, 2] (row, col), tissue float32 [N] 0..1, status uint8 [N].

    Status is `USABLE`, `CORRUPT` (touches an unreadable tile of the slide) or `NOT_STORED` (touches tissue whose pixels
    are not in the store); later stages use only usable patches.
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
    """The patch table of the lattice of `grid`. Raises StoreError if the store does not have it."""
    path = _folder(store, grid)
    if not path.exists():
        raise StoreError(f"{store}: no patches of {grid.patch_px} px every {grid.stride_px} px; tile with these values")
    cell, tissue, status = layout.read_table(path, ("cell", "tissue", "status"))
    return PatchTable(grid, cell, tissue, status)


def patches_attributes(store: Path, grid: Grid) -> dict[str, Any]:
    """Attributes of a patch table: `digest` of its inputs and `content`, the digest of its rows; {} if missing."""
    path = _folder(store, grid)
    return dict(layout.read_attributes(path).get("wsipipe", {})) if path.exists() else {}


def write_patches(store: Path, table: PatchTable, inputs_digest: str) -> None:
    """Write a patch table; it replaces that of the same lattice."""
    path = _folder(store, table.grid)
    columns = {"cell": table.cell, "tissue": table.tissue, "status": table.status}
    partial = partial_path(store, "patches", path.name)
    shutil.rmtree(partial, ignore_errors=True)
    content = digest(inputs_digest, *(hashlib.sha256(c.tobytes()).hexdigest() for c in (table.cell, table.status)))
    attributes = {"kind": "patches", "grid": table.grid.to_dict(), "digest": inputs_digest, "content": content}
    layout.create_table(partial, columns, {"wsipipe": attributes})
    replace_folder(partial, path)


def _folder(store: Path, grid: Grid) -> Path:
    return store / "patches" / f"{grid.patch_px}_{grid.stride_px}"
