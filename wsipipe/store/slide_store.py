"""SlideStore: read and write everything that is known of one slide."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import LEVEL_FACTOR, Grid, Window
from wsipipe.labels import IGNORE
from wsipipe.store import layout
from wsipipe.store.shards import ArraySpec, Cell, ShardedArray

KIND = "slide-store"
RESERVED = ("tissue", "tile", "zarr.json")
"""Names that stores and run folders use themselves: the tissue mask, the ledger of tiling, Zarr's metadata."""

GLASS = 255
"""Fill value of the pixels: white, as what was not stored is glass."""


@dataclass(frozen=True)
class PatchTable:
    """The patches kept of one lattice: cell int32 [N, 2] (row, col), tissue float32 [N] 0..1, status uint8 [N].

    Status 0 is usable; anything else is excluded downstream.
    """

    grid: Grid
    cell: NDArray[np.int32]
    tissue: NDArray[np.float32]
    status: NDArray[np.uint8]

    @property
    def windows(self) -> list[Window]:
        """The usable patches as windows."""
        return [self.grid.window(int(r), int(c)) for r, c in self.cell[self.status == 0]]


class SlideStore:
    """One `<slide_id>.zarr`, opened for reading; writers add labels and scores beside the pixels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        attributes = layout.read_attributes(path)
        meta: dict[str, Any] = attributes.get("wsipipe", {})
        if meta.get("kind") != KIND:
            raise StoreError(f"{path}: a Zarr group, but not a store of wsipipe; make one with: wsipipe tile")
        if meta.get("schema") != layout.SCHEMA:
            raise StoreError(
                f"{path}: written with store schema {meta.get('schema')}, this version reads {layout.SCHEMA}; "
                "tile again"
            )
        self.meta = meta
        self.slide_id = str(meta["slide_id"])
        self.grid = Grid.from_dict(meta["grid"])
        self.pixel_digest = str(meta["pixel_digest"])
        self._arrays: dict[str, ShardedArray] = {}

    @classmethod
    def create(cls, path: Path, grid: Grid, quality: int, meta: Mapping[str, Any]) -> SlideStore:
        """A new store with empty arrays at `path` (which must not exist); quality 0 stores pixels with zstd."""
        attributes = {"kind": KIND, "schema": layout.SCHEMA, "grid": grid.to_dict(), **meta}
        layout.write_group(path, layout.image_attributes(str(meta["slide_id"]), grid, attributes))
        for level in range(grid.levels):
            spec = ArraySpec((3, *grid.level_shape(level)), "uint8", GLASS, quality=quality)
            layout.create_array(path / str(level), spec, "cyx")
        for group in ("scores", "patches"):
            layout.write_group(path / group, {})
        layout.write_group(path / "labels", {"ome": {"version": "0.5", "labels": []}})
        return cls(path)

    def pixels(self, level: int = 0) -> ShardedArray:
        """The pixel array of a level."""
        return self._array(str(level))

    def read(self, window: Window, level: int = 0) -> NDArray[np.uint8]:
        """RGB of `window` (px of `level`): uint8 [h, w, 3]; white where nothing is stored."""
        return np.ascontiguousarray(np.moveaxis(self.pixels(level).read(window), 0, -1).astype(np.uint8, copy=False))

    def patches(self, patch_px: int = 0, stride_px: int = 0) -> PatchTable:
        """The patch table of a lattice (default: the one that the store was tiled with)."""
        grid = self.grid.with_patches(patch_px or self.grid.patch_px, stride_px or self.grid.stride_px)
        path = self.path / "patches" / f"{grid.patch_px}_{grid.stride_px}"
        if not path.exists():
            raise StoreError(
                f"{self.path}: no patches of {grid.patch_px} px every {grid.stride_px} px; tile with these"
            )
        cell, tissue, status = layout.read_table(path, ("cell", "tissue", "status"))
        return PatchTable(grid, cell, tissue, status)

    def write_patches(self, table: PatchTable) -> None:
        """Add a patch table."""
        grid = table.grid
        columns = {"cell": table.cell, "tissue": table.tissue, "status": table.status}
        path = self.path / "patches" / f"{grid.patch_px}_{grid.stride_px}"
        layout.create_table(path, columns, {"wsipipe": {"kind": "patches", "grid": grid.to_dict()}})

    def names(self, kind: str) -> list[str]:
        """Complete `labels` or `scores` of this store."""
        folder = self.path / kind
        return sorted(p.parent.name for p in folder.glob("[!.]*/zarr.json"))

    def attributes(self, kind: str, name: str) -> dict[str, Any]:
        """The wsipipe attributes of `labels/<name>` or `scores/<name>`; StoreError names what there is."""
        if name not in self.names(kind):
            there = ", ".join(self.names(kind)) or "none"
            raise StoreError(f"{self.path}: no {kind}/{name}; found {there}")
        return dict(layout.read_attributes(self.path / kind / name).get("wsipipe", {}))

    def labels(self, name: str, level: int = 0) -> ShardedArray:
        """The mask array `labels/<name>`: uint8 (y, x)."""
        self.attributes("labels", name)
        return self._array(f"labels/{name}/{level}")

    def scores(self, name: str) -> ShardedArray:
        """The score array `scores/<name>`: uint8 (class, y, x), 255 = 1.0; its stride is in the attributes."""
        self.attributes("scores", name)
        return self._array(f"scores/{name}/0")

    def tissue_grid(self, cell_px: int) -> NDArray[np.float32]:
        """Tissue share of every `cell_px` square of the slide, row-major: float32 [rows, cols] 0..1."""
        level = max(k for k in range(self.grid.levels) if k == 0 or LEVEL_FACTOR**k * 4 <= cell_px)
        side = cell_px / LEVEL_FACTOR**level
        height, width = self.grid.level_shape(level)
        rows, cols = -(-self.grid.size_px[1] // cell_px), -(-self.grid.size_px[0] // cell_px)
        out = np.zeros((rows, cols), np.float32)
        array = self.labels("tissue", level)
        edges_y, edges_x = (
            np.minimum((np.arange(n + 1) * side).astype(int), size) for n, size in ((rows, height), (cols, width))
        )
        band = max(
            1, int(4 * array.spec.chunk_px / side)
        )  # rows of cells read at once: each chunk is decoded about once
        for first in range(0, rows, band):
            last = min(first + band, rows)
            y1, y2 = int(edges_y[first]), int(edges_y[last])
            tissue = array.read(Window(0, y1, width, y2 - y1)) == 1
            by_row = np.add.reduceat(tissue, edges_y[first:last] - y1, axis=0, dtype=np.int32)
            out[first:last] = np.add.reduceat(by_row, edges_x[:-1], axis=1) / side**2
        return np.clip(out, 0, 1)

    def current(self, kind: str, name: str, digest: str, overwrite: bool) -> bool:
        """Whether `<kind>/<name>` is there already, made from the same inputs.

        StoreError if it was made from others, unless `overwrite`.
        """
        if name not in self.names(kind):
            return False
        if self.attributes(kind, name).get("digest") == digest:
            return True
        if overwrite:
            return False
        raise StoreError(
            f"{self.path}: {kind}/{name} was made from other inputs; "
            "choose another --name, or replace it with --overwrite"
        )

    def write_labels(
        self,
        name: str,
        values: Mapping[int, str],
        meta: Mapping[str, Any],
        shards: Iterable[tuple[Cell, NDArray[np.uint8]]],
    ) -> None:
        """Write `labels/<name>` aside, coarser levels included, then rename.

        `values` names the mask values; `shards` yields (shard, uint8 [h, w] of that shard). Absent shards are 255
        (0 for the mask `tissue`).
        """
        fill = 0 if name == "tissue" else IGNORE
        with self._replacing("labels", name) as path:
            layout.write_group(path, layout.label_attributes(name, self.grid, values, {"kind": "labels", **meta}))
            arrays = []
            for level in range(self.grid.levels):
                spec = ArraySpec(self.grid.level_shape(level), "uint8", fill)
                arrays.append(layout.create_array(path / str(level), spec, "yx"))
            for shard, pixels in shards:
                arrays[0].write_region(shard, pixels)
            for fine, coarse in pairwise(arrays):
                _decimate(fine, coarse)

    def write_scores(
        self, name: str, stride_px: int, meta: Mapping[str, Any], shards: Iterable[tuple[Cell, NDArray[np.uint8]]]
    ) -> None:
        """Write `scores/<name>` aside, then rename; `shards` yields (shard, uint8 [class, h, w]), 255 = 1.0."""
        width, height = (-(-n // stride_px) for n in self.grid.size_px)
        classes = meta["classes"]
        scales = layout.multiscales(name, self.grid, "cyx", stride_px)
        scales["datasets"] = scales["datasets"][:1]
        attributes = {"kind": "scores", "stride_px": stride_px, **meta}
        with self._replacing("scores", name) as path:
            layout.write_group(path, {"ome": {"version": "0.5", "multiscales": [scales]}, "wsipipe": attributes})
            array = layout.create_array(path / "0", ArraySpec((len(classes), height, width), "uint8", 0), "cyx")
            for shard, values in shards:
                array.write_region(shard, values)

    @contextmanager
    def _replacing(self, kind: str, name: str) -> Iterator[Path]:
        """A folder beside the store that becomes `<kind>/<name>` when the block ends well."""
        if name != "tissue":
            check_name(name)
        aside = self.path.with_name(f".{self.path.name}.{kind}.{name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            yield aside
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        final = self.path / kind / name
        with FileLock(lock_file(self.path)):
            swap(aside, final)
            if kind == "labels":
                listed = {"version": "0.5", "labels": self.names("labels")}
                layout.write_group(self.path / "labels", {"ome": listed})
        for key in [k for k in self._arrays if k.startswith(f"{kind}/{name}/")]:
            del self._arrays[key]

    def _array(self, key: str) -> ShardedArray:
        if key not in self._arrays:
            self._arrays[key] = ShardedArray(self.path / key)
        return self._arrays[key]


def lock_file(path: Path) -> Path:
    """The file that writers of the store at `path` lock while its shared lists change."""
    return path.with_name(f".{path.name}.lock")


def swap(aside: Path, final: Path) -> None:
    """Put folder `aside` in the place of `final`, which may exist; a reader finds the old one or the new one."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(aside, final)
    shutil.rmtree(old, ignore_errors=True)


def check_name(name: str) -> None:
    """ConfigError unless `name` is a plain file name that a user may give to masks, maps and their run folder."""
    if name in RESERVED:
        raise ConfigError(f"name {name!r}: it belongs to wsipipe itself; choose another --name")
    plain = name and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name) and name.isascii()
    if not plain:
        raise ConfigError(f"name {name!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")


def find_stores(folder: Path) -> list[Path]:
    """The stores of a folder, by name; ConfigError if there is none."""
    found = sorted(p for p in folder.glob("*.zarr") if not p.name.startswith(".")) if folder.is_dir() else []
    if not found:
        raise ConfigError(f"{folder}: no stores here; make them with: wsipipe tile SLIDES --stores {folder}")
    return found


def shard_windows(spec: ArraySpec) -> Iterator[tuple[Cell, Window]]:
    """Every shard of an array with the window of its pixels inside the array."""
    height, width = spec.shape[-2:]
    for row in range(spec.shards[0]):
        for col in range(spec.shards[1]):
            y, x = row * spec.shard_px, col * spec.shard_px
            yield (row, col), Window(x, y, min(spec.shard_px, width - x), min(spec.shard_px, height - y))


def _decimate(fine: ShardedArray, coarse: ShardedArray) -> None:
    """Fill a coarser mask level with the pixel nearest to the centre of each square of the finer one."""
    f, n = LEVEL_FACTOR, coarse.spec.chunk_px
    height, width = fine.spec.shape
    for shard, _ in shard_windows(coarse.spec):
        blocks = {}
        for row, col in coarse.spec.chunks_of_shard(shard):
            y, x = row * n * f, col * n * f
            window = Window(x, y, min(n * f, width - x), min(n * f, height - y))
            rows, cols = (
                np.minimum(np.arange(n) * f + f // 2, size - 1) for size in (window.height_px, window.width_px)
            )
            blocks[(row, col)] = fine.read(window)[np.ix_(rows, cols)]
        coarse.write_blocks(shard, blocks)
