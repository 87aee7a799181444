"""`features/<encoder>/<grid>` of a store: a cache of the features that a frozen encoder computes per cell of a lattice.

A plain chunked Zarr array, float16 (row, col, D); nan in cells that are not computed (no tissue, or not needed yet).
Every chunk is replaced atomically: a killed run loses at most one chunk. A missing chunk is not damage, and a chunk
with a wrong checksum is computed again.
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
from wsipipe.runtime.atomic import partial_path, replace_folder
from wsipipe.runtime.lock import lock_file
from wsipipe.store import layout
from wsipipe.store.names import check_name
from wsipipe.store.slide_store import SlideStore

log = logging.getLogger(__name__)

CHUNK_CELLS = 32
"""Side of a chunk in cells; an encoder processes about one chunk (1024 cells) at a time."""


class Features:
    """One array of features."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: Any = zarr.open_array(str(path), mode="r+")

    @property
    def width(self) -> int:
        """Length D of a feature vector."""
        return int(self._array.shape[2])

    def read(self, cells: NDArray[np.int32]) -> NDArray[np.float32]:
        """Features of cells (row, col) int32 [M, 2]: float32 [M, D], nan where not computed."""
        out = np.full((len(cells), self.width), np.nan, np.float32)
        for chunk, inside in chunks_of(cells):
            block = self._block(chunk)
            local = cells[inside] - np.array(chunk) * CHUNK_CELLS
            out[inside] = block[local[:, 0], local[:, 1]]
        return out

    def write(self, cells: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Write features float32 [M, D] of cells int32 [M, 2]; other cells do not change.

        Raises StoreError for values outside the range of float16.
        """
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise StoreError(f"{self.path}: features above 65504 or not finite; check the encoder and its weights")
        for chunk, inside in chunks_of(cells):
            block = self._block(chunk)
            local = cells[inside] - np.array(chunk) * CHUNK_CELLS
            block[local[:, 0], local[:, 1]] = halves[inside]
            self._array.set_block_selection((*chunk, 0), block)

    def _block(self, chunk: tuple[int, int]) -> NDArray[np.float16]:
        try:
            return np.array(self._array.get_block_selection((*chunk, 0)), np.float16)
        except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
            log.warning("%s: chunk %s is damaged (%s); computing it again", self.path, chunk, error)
            rows, cols = (min(CHUNK_CELLS, n - c * CHUNK_CELLS) for n, c in zip(self._array.shape, chunk, strict=False))
            return np.full((rows, cols, self.width), np.nan, np.float16)


def chunks_of(cells: NDArray[np.int32]) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Every chunk with the indices of its cells in int32 [M, 2], row-major."""
    chunk = cells // CHUNK_CELLS
    for row, col in np.unique(chunk, axis=0).tolist():
        yield (row, col), np.flatnonzero((chunk == [row, col]).all(1))


def open_features(store: SlideStore, encoder: str, grid: str, shape: tuple[int, int, int], digest: str) -> Features:
    """Open or create `features/<encoder>/<grid>` of `store`: float16 `shape` (rows, cols, D).

    digest: of the encoder's weights, the lattice and the pixels; an array of another digest or shape is replaced.
    """
    for name in (encoder, grid):
        check_name(name)
    path = store.path / "features" / encoder / grid
    if path.exists() and _contents(path) == (digest, shape):
        return Features(path)
    partial = partial_path(store.path, "features", encoder, grid)
    with FileLock(lock_file(store.path)):
        shutil.rmtree(partial, ignore_errors=True)
        chunks = (CHUNK_CELLS, CHUNK_CELLS, shape[2])
        attributes = {"wsipipe": {"kind": "features", "digest": digest}}
        layout.create_cells(partial, shape, chunks, attributes)
        for group in (store.path / "features", path.parent):
            if not (group / "zarr.json").exists():
                layout.write_group(group, {})
        replace_folder(partial, path)
    return Features(path)


def feature_names(store: SlideStore) -> list[tuple[str, str]]:
    """(encoder, grid) of all features in a store, sorted."""
    found = (store.path / "features").glob("[!.]*/[!.]*/zarr.json")
    return sorted((p.parent.parent.name, p.parent.name) for p in found)


def _contents(path: Path) -> tuple[str, tuple[int, ...]] | None:
    """Digest and shape of the array at `path`; None if its metadata are missing or changed."""
    try:
        attributes = layout.check_seal(path)
        return str(attributes["wsipipe"]["digest"]), tuple(zarr.open_array(str(path), mode="r").shape)
    except (StoreError, KeyError, ValueError, OSError):
        return None
