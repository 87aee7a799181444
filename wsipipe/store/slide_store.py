"""SlideStore: read and write everything that is known of one slide."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import LEVEL_FACTOR, Grid, Window
from wsipipe.labels import IGNORE
from wsipipe.runtime.atomic import lock_file, swap
from wsipipe.runtime.digest import digest
from wsipipe.store import layout, stain
from wsipipe.store.label_images import score_attributes, shard_key, shard_windows, write_image
from wsipipe.store.names import OBJECTS, check_name, place
from wsipipe.store.patches import PatchTable, patches_attributes, read_patches, write_patches
from wsipipe.store.shards import CHUNK_PX, SHARD_PX, ArraySpec, Cell, ShardedArray
from wsipipe.store.tissue_levels import TISSUE_VALUES, TissueLevels

KIND = "slide-store"
GLASS = 255
"""Fill value of the pixels: white, as what was not stored is glass."""


class SlideStore:
    """One `<slide_id>.zarr`, opened for reading; writers add labels and scores beside the pixels."""

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        attributes = layout.read_attributes(path)
        meta: dict[str, Any] = attributes.get("wsipipe", {})
        if not isinstance(meta, dict) or meta.get("kind") != KIND:
            raise StoreError(f"{path}: a Zarr group, but not a store of wsipipe; make one with: wsipipe tile")
        if meta.get("schema") != layout.SCHEMA:
            raise StoreError(
                f"{path}: written with store schema {meta.get('schema')}, this version reads {layout.SCHEMA}; "
                "tile again"
            )
        self.meta = meta
        try:
            self.slide_id = str(meta["slide_id"])
            self.grid = Grid.from_dict(meta["grid"])
            self.pixel_digest = str(meta["pixel_digest"])
            self._tables = stain.tables(meta["stain_gamma"]) if self.is_normalised else None
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}/zarr.json: damaged ({error!r}); tile this slide again") from None
        self._arrays: dict[str, ShardedArray] = {}

    @classmethod
    def create(
        cls, path: Path, grid: Grid, quality: int, meta: Mapping[str, Any], chunks_px: Sequence[int] = ()
    ) -> SlideStore:
        """A new store with empty arrays at `path` (which must not exist); quality 0 stores pixels with zstd.

        chunks_px: side of the chunks of each level, where it is not the usual one.
        """
        attributes = {"kind": KIND, "schema": layout.SCHEMA, "grid": grid.to_dict(), **meta}
        layout.write_group(path, layout.image_attributes(str(meta["slide_id"]), grid, attributes))
        for level in range(grid.levels):
            n = chunks_px[level] if chunks_px else CHUNK_PX
            shape, shard_px = (3, *grid.level_shape(level)), n * max(1, round(SHARD_PX / n))
            spec = ArraySpec(shape, "uint8", GLASS, chunk_px=n, shard_px=shard_px, quality=quality)
            layout.create_array(path / str(level), spec, "cyx")
        for group in ("scores", "patches"):
            layout.write_group(path / group, {})
        layout.write_group(path / "labels", {"ome": {"version": "0.5", "labels": []}})
        return cls(path)

    def note(self, **more: Any) -> None:
        """Add to the attributes of the store, or replace some of them."""
        with FileLock(lock_file(self.path)):
            self.meta = {**layout.read_attributes(self.path)["wsipipe"], **more}
            self.grid = Grid.from_dict(self.meta["grid"])
            layout.write_group(self.path, layout.image_attributes(self.slide_id, self.grid, self.meta))

    @property
    def digest(self) -> str:
        """Of what the later stages see: the pixels and the lattice of patches."""
        seen = (self.pixel_digest, self.meta["stain_gamma"]) if self.is_normalised else (self.pixel_digest,)
        return digest(*seen, patches_attributes(self.path, self.grid).get("content", ""))

    @property
    def is_normalised(self) -> bool:
        """Whether pixels are read with their stain evened out (see `store.stain`)."""
        return bool(self.meta.get("stain_gamma"))

    def normalise_stain(self, on: bool = True) -> None:
        """Read pixels with their stain evened out from now on, or as they are stored."""
        level = max(k for k in range(self.grid.levels) if k == 0 or self.grid.mpp[0] * LEVEL_FACTOR**k <= stain.MPP)
        measured = stain.measured(self.pixels(level), self.labels("tissue", level)) if on else ()
        self.note(stain_gamma=list(measured))
        self._tables = stain.tables(self.meta["stain_gamma"]) if on else None

    def check_like(self, mpp: float, normalise_stain: bool, whose: str) -> None:
        """StoreError unless the slide is seen as `whose` slides were: at the same um/px, and stain alike."""
        own = self.grid.mean_mpp
        if abs(own / mpp - 1) > 0.05:
            raise StoreError(f"{self.path}: is at {own:g} um/px, {whose} at {mpp:g}; tile it with --mpp {mpp:g}")
        if self.is_normalised != normalise_stain:
            seen, flag = (
                ("evened out", "--normalise-stain") if normalise_stain else ("as scanned", "--no-normalise-stain")
            )
            raise StoreError(f"{self.path}: {whose} saw stain {seen}; tile this slide alike, with {flag}")

    @property
    def shown_from_px0(self) -> tuple[int, int]:
        """(x, y) from which QuPath counts: the corner of the scanner's bounds, of the frame where none are recorded."""
        x, y = self.meta.get("slide", {}).get("bounds_px0", self.grid.origin_px0)[:2]
        return int(x), int(y)

    @property
    def mask_spec(self) -> ArraySpec:
        """What `labels/<name>` is like at level 0: its shards need not be those of the pixels."""
        return ArraySpec(self.grid.level_shape(0), "uint8", IGNORE)

    def pixels(self, level: int = 0) -> ShardedArray:
        """The pixel array of a level."""
        return self._array(str(level))

    def read(self, window: Window, level: int = 0) -> NDArray[np.uint8]:
        """RGB of `window` (px of `level`): uint8 [h, w, 3]; white where nothing is stored."""
        return np.moveaxis(self._seen(self.pixels(level).read(window)), 0, -1)

    def read_batch(self, windows: Sequence[Window], pool: Executor | None = None) -> NDArray[np.uint8]:
        """RGB of windows of one size at level 0: uint8 [n, 3, h, w], white where nothing is stored.

        The memory is channels last, so that `torch.from_numpy` of it is a channels-last tensor without a copy. Every
        chunk is decoded once, by the threads of `pool` if there is one.
        """
        return self._seen(self.pixels().read_batch(windows, pool))

    def _seen(self, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Stored pixels [.., 3, h, w] as they are to be seen."""
        rgb = pixels.astype(np.uint8, copy=False)
        return rgb if self._tables is None else stain.evened(rgb, self._tables)

    def patches(self, patch_px: int = 0, stride_px: int = 0) -> PatchTable:
        """The patch table of a lattice (default: the one that the store was tiled with)."""
        grid = self.grid.with_patches(patch_px or self.grid.patch_px, stride_px or self.grid.stride_px)
        return read_patches(self.path, grid)

    def patches_digest(self, patch_px: int, stride_px: int) -> str | None:
        """Digest of what the patches of a lattice were made from; None if the store has none."""
        return patches_attributes(self.path, self.grid.with_patches(patch_px, stride_px)).get("digest")

    def write_patches(self, table: PatchTable, made_of: str = "") -> None:
        """Write the patches of a lattice, in the place of others of that lattice, and make it the store's own."""
        write_patches(self.path, table, made_of)
        self.note(grid=table.grid.to_dict())

    def names(self, kind: str) -> list[str]:
        """Complete `labels` (masks of classes), `scores`, or `objects` (the masks whose objects are numbered)."""
        folder = self.path / ("labels" if kind == "objects" else kind)
        there = sorted(p.parent.name for p in folder.glob("[!.]*/zarr.json"))
        if kind == "objects":
            return [name.removesuffix(OBJECTS) for name in there if name.endswith(OBJECTS)]
        return [name for name in there if not name.endswith(OBJECTS)]

    def attributes(self, kind: str, name: str) -> dict[str, Any]:
        """The wsipipe attributes of `labels/<name>`, `scores/<name>` or the objects of mask `name`.

        StoreError names what there is.
        """
        if name not in self.names(kind):
            if kind == "labels" and name.removesuffix(OBJECTS) in self.names("objects"):
                mask = name.removesuffix(OBJECTS)
                raise StoreError(f"{self.path}: labels/{name} numbers objects, it is no mask of classes; name {mask}")
            there = ", ".join(self.names(kind)) or "none"
            raise StoreError(f"{self.path}: no {place(kind, name)}; found {there}")
        return dict(layout.read_attributes(self.path / place(kind, name)).get("wsipipe", {}))

    def labels(self, name: str, level: int = 0) -> ShardedArray:
        """The mask array `labels/<name>`: uint8 (y, x)."""
        self.attributes("labels", name)
        return self._array(f"labels/{name}/{level}")

    def objects(self, name: str, level: int = 0) -> ShardedArray:
        """The array `labels/<name>-objects`: uint32 (y, x), the number of the object that a pixel is of, 0 of none."""
        self.attributes("objects", name)
        return self._array(f"{place('objects', name)}/{level}")

    def scores(self, name: str) -> ShardedArray:
        """The score array `scores/<name>`: uint8 (class, y, x), 255 = 1.0; its stride is in the attributes."""
        self.attributes("scores", name)
        return self._array(f"scores/{name}/0")

    def tissue_grid(self, cell_px: int) -> NDArray[np.float32]:
        """Tissue share of every `cell_px` square of the slide, row-major: float32 [rows, cols] 0..1."""
        level = max(k for k in range(self.grid.levels) if k == 0 or LEVEL_FACTOR**k * 4 <= cell_px)
        side = cell_px / LEVEL_FACTOR**level
        height, width = self.grid.level_shape(level)
        rows, cols = self.grid.cells(cell_px)
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
            f"{self.path}: {place(kind, name)} was made from other inputs; "
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

        `values` names the mask values; `shards` yields (shard, uint8 [h, w] of that shard). Absent shards are 255.
        The objects of the mask that was there go with it.
        """
        with self._replacing("labels", name) as path:
            write_image(path, name, self.grid, self.mask_spec, values, meta, shards)

    def write_objects(
        self, name: str, meta: Mapping[str, Any], shards: Iterable[tuple[Cell, NDArray[np.uint32]]]
    ) -> None:
        """Write `labels/<name>-objects`, the objects of `labels/<name>`, as `write_labels`.

        `shards` yields (shard, uint32 [h, w] of that shard): 0 for no object, 1.. for one each. Absent shards are 0.
        """
        spec = replace(self.mask_spec, dtype="uint32", fill=0)
        with self._replacing("objects", name) as path:
            write_image(path, name + OBJECTS, self.grid, spec, {}, {**meta, "kind": "objects"}, shards)

    def write_tissue(self, tissue: TissueLevels, meta: Mapping[str, Any]) -> None:
        """Write `labels/tissue`; chunks that are all glass are left out."""
        with self._replacing("labels", "tissue") as path:
            stored = {}
            for level in range(self.grid.levels):
                spec = ArraySpec(self.grid.level_shape(level), "uint8", 0)
                array = layout.create_array(path / str(level), spec, "yx")
                stored[str(level)] = {
                    shard_key(shard): array.write_shard(shard, tissue.chunks(spec, level, shard))
                    for shard, _ in shard_windows(spec)
                }
            attributes = {"kind": "labels", **meta, "stored": stored}
            layout.write_group(path, layout.label_attributes("tissue", self.grid, TISSUE_VALUES, attributes))

    def write_scores(
        self, name: str, stride_px: int, meta: Mapping[str, Any], shards: Iterable[tuple[Cell, NDArray[np.uint8]]]
    ) -> None:
        """Write `scores/<name>` aside, then rename; `shards` yields (shard, uint8 [class, h, w]), 255 = 1.0."""
        classes = meta["classes"]
        with self._replacing("scores", name) as path:
            array = layout.create_array(
                path / "0", ArraySpec((len(classes), *self.grid.cells(stride_px)), "uint8", 0), "cyx"
            )
            stored = {"0": {shard_key(shard): array.write_region(shard, values) for shard, values in shards}}
            attributes = {**meta, "stored": stored}
            layout.write_group(path, score_attributes(name, self.grid, stride_px, attributes))

    @contextmanager
    def _replacing(self, kind: str, name: str) -> Iterator[Path]:
        """A folder beside the store that takes the place of `<kind>/<name>` when the block ends well."""
        if name != "tissue":
            check_name(name)
        aside = self.path.with_name(f".{self.path.name}.{kind}.{name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            yield aside
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        self.put(kind, name, aside)

    def put(self, kind: str, name: str, aside: Path) -> None:
        """Make the complete folder `aside` to `<kind>/<name>`, in the place of what may be there.

        Objects are cut to a mask: where another takes its place, they go.
        """
        with FileLock(lock_file(self.path)):
            if kind == "labels" and name in self.names("objects"):
                self._drop_objects(name)
            swap(aside, self.path / place(kind, name))
            if kind != "scores":
                self._list_labels()
        self._forget(place(kind, name))

    def _drop_objects(self, name: str) -> None:
        """Take the objects of a mask out of the store: first off its list, then out of sight, then from the disk."""
        key = place("objects", name)
        objects = self.path / key
        self._list_labels(without=objects.name)
        gone = objects.with_name(f".{objects.name}.old")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(objects, gone)
        shutil.rmtree(gone, ignore_errors=True)
        self._forget(key)

    def _list_labels(self, without: str = "") -> None:
        """Write the list of the label images, masks and objects, by which readers of OME-Zarr find them."""
        there = [*self.names("labels"), *(name + OBJECTS for name in self.names("objects"))]
        listed = {"version": "0.5", "labels": sorted(n for n in there if n != without)}
        layout.write_group(self.path / "labels", {"ome": listed})

    def _forget(self, place: str) -> None:
        """Close the arrays of what was replaced."""
        for key in [k for k in self._arrays if k.startswith(f"{place}/")]:
            del self._arrays[key]

    def _array(self, key: str) -> ShardedArray:
        if key not in self._arrays:
            self._arrays[key] = ShardedArray(self.path / key)
        return self._arrays[key]


def find_stores(folder: Path) -> list[Path]:
    """The stores of a folder, by name; ConfigError if there is none."""
    found = sorted(p for p in folder.glob("*.zarr") if not p.name.startswith(".")) if folder.is_dir() else []
    if not found:
        raise ConfigError(f"{folder}: no stores here; make them with: wsipipe tile SLIDES --stores {folder}")
    return found
