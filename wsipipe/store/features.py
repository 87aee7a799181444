"""`features/<encoder>/<grid>` of a store: what a frozen encoder makes of the cells of a lattice, kept to be used again.

A plain chunked Zarr array, float16 (row, col, D). A cell that was not computed (no tissue, or nobody asked) is nan.
Chunks are written one by one, each aside and renamed, so that a killed run loses at most the chunk it was at. All of
it can be computed again: a chunk that is missing is no damage, and one that does not match its checksum is left aside.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from filelock import FileLock
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.runtime.atomic import lock_file, swap
from wsipipe.store import layout
from wsipipe.store.names import check_name
from wsipipe.store.slide_store import SlideStore

log = logging.getLogger(__name__)

CHUNK_CELLS = 32
"""Side of a chunk in cells; about a thousand of them go through an encoder together."""


class Features:
    """One array of features; `made_of` is the digest of the encoder's weights, the lattice and the pixels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: Any = zarr.open_array(str(path), mode="r+")

    @property
    def width(self) -> int:
        """Numbers in a feature."""
        return int(self._array.shape[2])

    def read(self, cells: NDArray[np.int32]) -> NDArray[np.float32]:
        """Features of cells (row, col) int [M, 2]: float32 [M, D], nan where they were not computed."""
        out = np.full((len(cells), self.width), np.nan, np.float32)
        for chunk, inside in chunks_of(cells):
            block = self._block(chunk)
            local = cells[inside] - np.array(chunk) * CHUNK_CELLS
            out[inside] = block[local[:, 0], local[:, 1]]
        return out

    def write(self, cells: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Keep features float32 [M, D] of cells int [M, 2], chunk by chunk; the other cells stay as they are.

        Raises StoreError for values that float16 does not hold.
        """
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise StoreError(f"{self.path}: features beyond 65504, or not numbers; check the encoder and its weights")
        for chunk, inside in chunks_of(cells):
            block = self._block(chunk)
            local = cells[inside] - np.array(chunk) * CHUNK_CELLS
            block[local[:, 0], local[:, 1]] = halves[inside]
            self._array.set_block_selection((*chunk, 0), block)

    def _block(self, chunk: tuple[int, int]) -> NDArray[np.float16]:
        try:
            return np.array(self._array.get_block_selection((*chunk, 0)), np.float16)
        except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
            log.warning("%s: chunk %s is damaged (%s) and computed again", self.path, chunk, error)
            rows, cols = (min(CHUNK_CELLS, n - c * CHUNK_CELLS) for n, c in zip(self._array.shape, chunk, strict=False))
            return np.full((rows, cols, self.width), np.nan, np.float16)


def chunks_of(cells: NDArray[np.int32]) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Every chunk that holds some of the cells int [M, 2], with their indices, row-major."""
    chunk = cells // CHUNK_CELLS
    for row, col in np.unique(chunk, axis=0).tolist():
        yield (row, col), np.flatnonzero((chunk == [row, col]).all(1))


def open_features(store: SlideStore, encoder: str, grid: str, shape: tuple[int, int, int], made_of: str) -> Features:
    """`features/<encoder>/<grid>` of `store`, float16 `shape` (rows, cols, D); what was made of other things goes."""
    for name in (encoder, grid):
        check_name(name)
    path = store.path / "features" / encoder / grid
    if path.exists() and _made_of(path) == (made_of, shape):
        return Features(path)
    aside = store.path.with_name(f".{store.path.name}.features.{encoder}.{grid}.partial")
    with FileLock(lock_file(store.path)):
        shutil.rmtree(aside, ignore_errors=True)
        chunks = (CHUNK_CELLS, CHUNK_CELLS, shape[2])
        attributes = {"wsipipe": {"kind": "features", "digest": made_of}}
        layout.create_cells(aside, shape, chunks, attributes)
        for group in (store.path / "features", path.parent):
            if not (group / "zarr.json").exists():
                layout.write_group(group, {})
        swap(aside, path)
    return Features(path)


def feature_names(store: SlideStore) -> list[tuple[str, str]]:
    """(encoder, grid) of all features in a store."""
    found = (store.path / "features").glob("[!.]*/[!.]*/zarr.json")
    return sorted((p.parent.parent.name, p.parent.name) for p in found)


def _made_of(path: Path) -> tuple[str, tuple[int, ...]] | None:
    """Digest and shape of the array at `path`; None if its metadata are not as they were written."""
    try:
        attributes = layout.check_seal(path)
        return str(attributes["wsipipe"]["digest"]), tuple(zarr.open_array(str(path), mode="r").shape)
    except (StoreError, KeyError, ValueError, OSError):
        return None
