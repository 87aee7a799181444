"""Patch tables: read by others, one of each lattice, never returned where damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.store import PatchTable, SlideStore


def test_patches_are_a_table_that_stock_zarr_reads(tiled: Path) -> None:
    table = SlideStore(tiled).patches()
    group = zarr.open_group(str(tiled / "patches" / "128_128"), mode="r")
    np.testing.assert_array_equal(group["cell"][...], table.cell)
    assert (table.cell.dtype, table.tissue.dtype, table.status.dtype) == (np.int32, np.float32, np.uint8)
    assert len(table.windows) == len(table.cell) > 10


def test_patches_of_another_lattice_are_added_and_a_missing_one_is_named(store: SlideStore) -> None:
    with pytest.raises(StoreError, match="no patches of 64 px every 32 px; tile with these"):
        store.patches(64, 32)
    grid = store.grid.with_patches(64, 32)
    table = PatchTable(
        grid, np.array([[1, 2], [3, 4]], np.int32), np.array([0.5, 1], np.float32), np.array([0, 2], np.uint8)
    )
    store.write_patches(table)
    found = store.patches(64, 32)
    assert found.grid == grid
    np.testing.assert_array_equal(found.cell, table.cell)
    assert found.windows == [Window(64, 32, 64, 64)]  # status 2 is left out


def test_patches_replace_those_of_their_lattice_and_become_the_stores_own(store: SlideStore) -> None:
    own = store.patches()
    grid = store.grid.with_patches(64, 64)
    for n in (3, 2):
        cells = np.zeros((n, 2), np.int32)
        store.write_patches(
            PatchTable(grid, cells, np.ones(n, np.float32), np.zeros(n, np.uint8)), inputs_digest=str(n)
        )
        assert len(store.patches().cell) == n
        assert store.patches_digest(64, 64) == str(n)
    assert (SlideStore(store.path).grid, store.digest) == (grid, SlideStore(store.path).digest)
    np.testing.assert_array_equal(store.patches(128, 128).cell, own.cell)
    assert store.patches_digest(32, 32) is None
    assert not [p for p in store.path.parent.rglob("*") if p.suffix in (".old", ".partial")]


@pytest.mark.parametrize("file", ["cell/c/0/0", "status/c/0", "status/zarr.json", "tissue/c/0"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_a_damaged_patch_table_is_never_returned(store: SlideStore, file: str, damage: str) -> None:
    path = store.path / "patches/128_128" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.unlink() if damage == "gone" else path.write_bytes({"flip": data, "cut": data[:9]}.get(damage, b""))
    with pytest.raises(StoreError, match=r"damaged, cannot be read \(.*\); tile again"):
        store.patches()
