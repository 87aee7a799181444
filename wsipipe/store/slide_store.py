"""SlideStore: read and write all data of one slide."""

from __future__ import annotations

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

from wsipipe.errors import ConfigError, StoreError, other_inputs
from wsipipe.geometry import LEVEL_FACTOR, Grid, Window
from wsipipe.labels import IGNORE, Tissue
from wsipipe.runtime.atomic import partial_path, remove_folder, replace_folder
from wsipipe.runtime.digest import digest
from wsipipe.runtime.lock import lock_file
from wsipipe.store import layout, stain
from wsipipe.store.label_images import score_attributes, shard_key, shard_windows, write_image
from wsipipe.store.names import OBJECTS_SUFFIX, check_name, path_in_store
from wsipipe.store.patches import PatchTable, patches_attributes, read_patches, write_patches
from wsipipe.store.shards import CHUNK_PX, SHARD_PX, ArraySpec, Cell, ShardedArray
from wsipipe.store.tissue_levels import TISSUE_VALUES, TissueLevels

KIND = "slide-store"
WHITE = 255
"""Fill value of the pixels: glass is not stored and reads as white."""


class SlideStore:
    """One `<slide_id>.zarr`: pixels, patches, labels and scores of a slide in one frame."""

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        attributes = layout.read_attributes(path)
        meta: dict[str, Any] = attributes.get("wsipipe", {})
        if not isinstance(meta, dict) or meta.get("kind") != KIND:
            raise StoreError(f"{path}: a Zarr group, but not a wsipipe store; make one with: wsipipe tile")
        if meta.get("schema") != layout.SCHEMA:
            raise StoreError(
                f"{path}: store schema {meta.get('schema')}, this version reads {layout.SCHEMA}; tile the slide again"
            )
        self.meta = meta
        try:
            self.slide_id = str(meta["slide_id"])
            self.grid = Grid.from_dict(meta["grid"])
            self.pixel_digest = str(meta["pixel_digest"])
            self._tables = stain.gamma_tables(meta["stain_gamma"]) if self.is_normalised else None
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}/zarr.json: damaged ({error!r}); tile this slide again") from None
        self._arrays: dict[str, ShardedArray] = {}

    @classmethod
    def create(
        cls, path: Path, grid: Grid, quality: int, meta: Mapping[str, Any], chunks_px: Sequence[int] = ()
    ) -> SlideStore:
        """Create a store with empty arrays at `path`, which must not exist.

        quality: of JPEG; 0 for zstd. chunks_px: side of the chunks per level (default: CHUNK_PX).
        """
        attributes = {"kind": KIND, "schema": layout.SCHEMA, "grid": grid.to_dict(), **meta}
        layout.write_group(path, layout.image_attributes(str(meta["slide_id"]), grid, attributes))
        for level in range(grid.levels):
            n = chunks_px[level] if chunks_px else CHUNK_PX
            shape, shard_px = (3, *grid.level_shape(level)), n * max(1, round(SHARD_PX / n))
            spec = ArraySpec(shape, "uint8", WHITE, chunk_px=n, shard_px=shard_px, quality=quality)
            layout.create_array(path / str(level), spec, "cyx")
        for group in ("scores", "patches"):
            layout.write_group(path / group, {})
        layout.write_group(path / "labels", {"ome": {"version": "0.5", "labels": []}})
        return cls(path)

    def update_meta(self, **more: Any) -> None:
        """Add or replace attributes of the store."""
        with FileLock(lock_file(self.path)):
            self.meta = {**layout.read_attributes(self.path)["wsipipe"], **more}
            self.grid = Grid.from_dict(self.meta["grid"])
            layout.write_group(self.path, layout.image_attributes(self.slide_id, self.grid, self.meta))

    @property
    def digest(self) -> str:
        """Digest of the input of later stages: pixels, stain normalisation and the lattice of patches."""
        pixels = (self.pixel_digest, self.meta["stain_gamma"]) if self.is_normalised else (self.pixel_digest,)
        return digest(*pixels, patches_attributes(self.path, self.grid).get("content", ""))

    @property
    def is_normalised(self) -> bool:
        """Whether pixels are read with normalised stain (see `store.stain`)."""
        return bool(self.meta.get("stain_gamma"))

    def normalise_stain(self, on: bool = True) -> None:
        """Switch stain normalisation of reading on or off; the stored pixels do not change."""
        level = max(k for k in range(self.grid.levels) if k == 0 or self.grid.mpp[0] * LEVEL_FACTOR**k <= stain.MAX_MPP)
        gamma = stain.measure_gamma(self.pixels(level), self.labels("tissue", level)) if on else ()
        self.update_meta(stain_gamma=list(gamma))
        self._tables = stain.gamma_tables(self.meta["stain_gamma"]) if on else None

    def check_compatible(self, mpp: float, normalise_stain: bool, model: str) -> None:
        """Raise StoreError unless mpp (within 5 %) and stain normalisation are those that `model` was trained with."""
        own = self.grid.mean_mpp
        if abs(own / mpp - 1) > 0.05:
            raise StoreError(f"{self.path}: has {own:g} um/px, {model} was trained at {mpp:g}; tile with --mpp {mpp:g}")
        if self.is_normalised != normalise_stain:
            how, flag = ("with", "--normalise-stain") if normalise_stain else ("without", "--no-normalise-stain")
            raise StoreError(f"{self.path}: {model} was trained {how} normalised stain; tile with {flag}")

    @property
    def shown_from_px0(self) -> tuple[int, int]:
        """(x, y) of QuPath's origin: the corner of the scanned bounds, or of the frame if the slide has no bounds."""
        x, y = self.meta.get("slide", {}).get("bounds_px0", self.grid.origin_px0)[:2]
        return int(x), int(y)

    @property
    def mask_spec(self) -> ArraySpec:
        """Spec of `labels/<name>` at level 0; its shards may differ from those of the pixels."""
        return ArraySpec(self.grid.level_shape(0), "uint8", IGNORE)

    def pixels(self, level: int = 0) -> ShardedArray:
        """The pixel array of a level."""
        return self._array(str(level))

    def read(self, window: Window, level: int = 0) -> NDArray[np.uint8]:
        """RGB of `window` (px of `level`): uint8 [h, w, 3]; white where nothing is stored."""
        return np.moveaxis(self._normalised(self.pixels(level).read(window)), 0, -1)

    def read_batch(self, windows: Sequence[Window], pool: Executor | None = None) -> NDArray[np.uint8]:
        """RGB of windows of one size at level 0: uint8 [n, 3, h, w], white where nothing is stored.

        The memory is channels last: `torch.from_numpy` makes a channels-last tensor of it without a copy. Every chunk
        is decoded once, by the threads of `pool` if given.
        """
        return self._normalised(self.pixels().read_batch(windows, pool))

    def _normalised(self, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Stored pixels [.., 3, h, w] after stain normalisation, if that is on."""
        rgb = pixels.astype(np.uint8, copy=False)
        return rgb if self._tables is None else stain.apply_tables(rgb, self._tables)

    def patches(self, patch_px: int = 0, stride_px: int = 0) -> PatchTable:
        """The patch table of a lattice (default: the last one that the slide was tiled with)."""
        grid = self.grid.with_patches(patch_px or self.grid.patch_px, stride_px or self.grid.stride_px)
        return read_patches(self.path, grid)

    def patches_digest(self, patch_px: int, stride_px: int) -> str | None:
        """Digest of the inputs of the patches of a lattice; None if the store does not have this lattice."""
        return patches_attributes(self.path, self.grid.with_patches(patch_px, stride_px)).get("digest")

    def write_patches(self, table: PatchTable, inputs_digest: str = "") -> None:
        """Write (or replace) the patches of a lattice and make it the default of the store."""
        write_patches(self.path, table, inputs_digest)
        self.update_meta(grid=table.grid.to_dict())

    def names(self, kind: str) -> list[str]:
        """Names of the complete `labels` (class masks), `scores`, or `objects` (masks with numbered objects)."""
        folder = self.path / ("labels" if kind == "objects" else kind)
        there = sorted(p.parent.name for p in folder.glob("[!.]*/zarr.json"))
        if kind == "objects":
            return [name.removesuffix(OBJECTS_SUFFIX) for name in there if name.endswith(OBJECTS_SUFFIX)]
        return [name for name in there if not name.endswith(OBJECTS_SUFFIX)]

    def attributes(self, kind: str, name: str) -> dict[str, Any]:
        """The wsipipe attributes of `labels/<name>`, `scores/<name>` or the objects of mask `name`.

        Raises StoreError with the existing names.
        """
        if name not in self.names(kind):
            if kind == "labels" and name.removesuffix(OBJECTS_SUFFIX) in self.names("objects"):
                mask = name.removesuffix(OBJECTS_SUFFIX)
                raise StoreError(f"{self.path}: labels/{name} is an image of objects, not a class mask; use {mask}")
            there = ", ".join(self.names(kind)) or "none"
            raise StoreError(f"{self.path}: no {path_in_store(kind, name)}; found {there}")
        return dict(layout.read_attributes(self.path / path_in_store(kind, name)).get("wsipipe", {}))

    def labels(self, name: str, level: int = 0) -> ShardedArray:
        """The mask array `labels/<name>`: uint8 (y, x)."""
        self.attributes("labels", name)
        return self._array(f"labels/{name}/{level}")

    def objects(self, name: str, level: int = 0) -> ShardedArray:
        """The array `labels/<name>-objects`: uint32 (y, x), the object number of each pixel, 0 for none."""
        self.attributes("objects", name)
        return self._array(f"{path_in_store('objects', name)}/{level}")

    def scores(self, name: str) -> ShardedArray:
        """The score array `scores/<name>`: uint8 (class, y, x), 255 = 1.0; the attributes give its stride."""
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
        band = max(1, int(4 * array.spec.chunk_px / side))  # rows of cells per read: a chunk is decoded about once
        for first in range(0, rows, band):
            last = min(first + band, rows)
            y1, y2 = int(edges_y[first]), int(edges_y[last])
            tissue = array.read(Window(0, y1, width, y2 - y1)) == Tissue.TISSUE
            by_row = np.add.reduceat(tissue, edges_y[first:last] - y1, axis=0, dtype=np.int32)
            out[first:last] = np.add.reduceat(by_row, edges_x[:-1], axis=1) / side**2
        return np.clip(out, 0, 1)

    def can_reuse(self, kind: str, name: str, digest: str, overwrite: bool) -> bool:
        """Whether `<kind>/<name>` exists and was made from the same inputs.

        Raises StoreError if it was made from other inputs, unless `overwrite`.
        """
        if name not in self.names(kind):
            return False
        if self.attributes(kind, name).get("digest") == digest:
            return True
        if overwrite:
            return False
        raise StoreError(other_inputs(f"{self.path}: {path_in_store(kind, name)}"))

    def write_labels(
        self,
        name: str,
        values: Mapping[int, str],
        meta: Mapping[str, Any],
        shards: Iterable[tuple[Cell, NDArray[np.uint8]]],
    ) -> None:
        """Write `labels/<name>` with its coarser levels, atomically; objects of a replaced mask are removed.

        `values` names the mask values; `shards` yields (shard, uint8 [h, w] of that shard). Missing shards are 255.
        """
        with self._replacing("labels", name) as path:
            write_image(path, name, self.grid, self.mask_spec, values, meta, shards)

    def write_objects(
        self, name: str, meta: Mapping[str, Any], shards: Iterable[tuple[Cell, NDArray[np.uint32]]]
    ) -> None:
        """Write `labels/<name>-objects`, the objects of `labels/<name>`, as `write_labels` does.

        `shards` yields (shard, uint32 [h, w] of that shard): 0 no object, 1.. object numbers. Missing shards are 0.
        """
        spec = replace(self.mask_spec, dtype="uint32", fill=0)
        with self._replacing("objects", name) as path:
            write_image(path, name + OBJECTS_SUFFIX, self.grid, spec, {}, {**meta, "kind": "objects"}, shards)

    def write_tissue(self, tissue: TissueLevels, meta: Mapping[str, Any]) -> None:
        """Write `labels/tissue`, atomically; chunks of glass alone are not stored."""
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
        """Write `scores/<name>`, atomically; `shards` yields (shard, uint8 [class, h, w]), 255 = 1.0."""
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
        """A temporary folder beside the store; it replaces `<kind>/<name>` when the block succeeds."""
        if name != "tissue":
            check_name(name)
        partial = partial_path(self.path, kind, name)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.put(kind, name, partial)

    def put(self, kind: str, name: str, folder: Path) -> None:
        """Move the complete `folder` to `<kind>/<name>`, which may exist; objects of a replaced mask are removed."""
        with FileLock(lock_file(self.path)):
            if kind == "labels" and name in self.names("objects"):
                self._remove_objects(name)
            replace_folder(folder, self.path / path_in_store(kind, name))
            if kind != "scores":
                self._list_labels()
        self._close(path_in_store(kind, name))

    def _remove_objects(self, name: str) -> None:
        """Remove the objects of a mask, from the list of labels first."""
        key = path_in_store("objects", name)
        objects = self.path / key
        self._list_labels(without=objects.name)
        remove_folder(objects)
        self._close(key)

    def _list_labels(self, without: str = "") -> None:
        """Write the list of label images (masks and objects) that readers of OME-Zarr expect."""
        there = [*self.names("labels"), *(name + OBJECTS_SUFFIX for name in self.names("objects"))]
        listed = {"version": "0.5", "labels": sorted(n for n in there if n != without)}
        layout.write_group(self.path / "labels", {"ome": listed})

    def _close(self, path: str) -> None:
        """Close the arrays below a path in the store."""
        for key in [k for k in self._arrays if k.startswith(f"{path}/")]:
            del self._arrays[key]

    def _array(self, key: str) -> ShardedArray:
        if key not in self._arrays:
            self._arrays[key] = ShardedArray(self.path / key)
        return self._arrays[key]


def find_stores(folder: Path) -> list[Path]:
    """The stores of a folder, sorted by name. Raises ConfigError if there are none."""
    found = sorted(p for p in folder.glob("*.zarr") if not p.name.startswith(".")) if folder.is_dir() else []
    if not found:
        raise ConfigError(f"{folder}: contains no stores; make some with: wsipipe tile SLIDES --stores {folder}")
    return found
