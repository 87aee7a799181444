"""Masks and scores of one slide, written shard by shard beside the store, so that a killed run can resume.

Content of the folder `.<store>.maps.<name>.partial`: `key` (digest of the inputs), `labels` and `scores` as in the
store, `written/<row>.<col>` (one file per finished shard, with its scores), `complete` (written last: only the two
folders remain to be moved).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.geometry import ceil_div
from wsipipe.labels import IGNORE
from wsipipe.runtime.atomic import partial_path, write_bytes
from wsipipe.runtime.lock import SlideLock
from wsipipe.store import layout
from wsipipe.store.label_images import finish_labels, label_specs, score_attributes, shard_key
from wsipipe.store.names import check_name
from wsipipe.store.shards import SHARD_PX, ArraySpec, Cell, ShardedArray
from wsipipe.store.slide_store import SlideStore

_CACHED_PARTS = 4  # a chunk of scores overlaps fewer parts, so neighbouring chunks share them


class ResumableMapWriter:
    """Writes `labels/<name>` and `scores/<name>` of `store`. A context manager for one process at a time.

    key: digest of all inputs. Shards of an earlier run with the same key are reused, others are removed. A shard is a
    square of `shard_px` of the mask; scores have `classes` channels and one value per `stride_px`, and belong to the
    shard that contains their first pixel.
    """

    def __init__(
        self, store: SlideStore, name: str, key: str, classes: int, stride_px: int, shard_px: int = SHARD_PX
    ) -> None:
        check_name(name)
        self.store, self.name, self.key, self.stride_px = store, name, key, stride_px
        self.folder = _folder(store, name)
        width, height = store.grid.size_px
        self.spec = ArraySpec((height, width), "uint8", IGNORE, shard_px=shard_px)
        self.scores_shape = (classes, *store.grid.cells(stride_px))
        lock = store.path.with_name(f".{store.path.name}.maps.{name}.hold")
        self._lock = SlideLock(lock, f"{store.path}: labels/{name}")
        self._written: dict[Cell, int] = {}

    def __enter__(self) -> ResumableMapWriter:
        self._lock.acquire()
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def written(self) -> frozenset[Cell]:
        """The finished shards."""
        return frozenset(self._written)

    @property
    def complete(self) -> bool:
        """Whether everything is written and only the folders remain to be moved."""
        return (self.folder / "complete").exists()

    def cells(self, shard: Cell) -> tuple[slice, slice]:
        """The rows and columns of the scores that belong to a shard of the mask."""
        starts = ((i * self.spec.shard_px, (i + 1) * self.spec.shard_px) for i in shard)
        rows, cols = (
            slice(ceil_div(first, self.stride_px), min(n, ceil_div(last, self.stride_px)))
            for (first, last), n in zip(starts, self.scores_shape[1:], strict=True)
        )
        return rows, cols

    def write(self, shard: Cell, mask: NDArray[np.uint8], scores: NDArray[np.uint8]) -> None:
        """Write one shard: mask uint8 [h, w], scores uint8 [class, *self.cells(shard)], 255 = 1.0."""
        chunks = self._labels().write_region(shard, mask)
        head = json.dumps({"chunks": chunks, "shape": scores.shape}).encode() + b"\n"
        body = head + imagecodecs.zstd_encode(np.ascontiguousarray(scores).tobytes(), level=3)
        write_bytes(self._part_file(shard), body + google_crc32c.value(body).to_bytes(4, "little"))
        self._written[shard] = chunks

    def finish(self, values: Mapping[int, str], meta: Mapping[str, Any]) -> None:
        """Write coarser levels, scores and metadata, then move both folders into the store.

        `values` names the mask values; `meta` has `classes`, the names of the score channels. Missing shards read as
        255 in the mask and 0 in the scores.
        """
        if not self.complete:
            labels = self.folder / "labels"
            arrays = [
                _recreate(labels / str(k), s, "yx") for k, s in enumerate(label_specs(self.store.grid, self.spec))
            ]
            stored = {shard_key(shard): n for shard, n in sorted(self._written.items())}
            finish_labels(labels, self.name, self.store.grid, values, {**meta, "stored": {"0": stored}}, arrays)
            self._finish_scores(meta)
            write_bytes(self.folder / "complete", b"")
        for kind in ("scores", "labels"):
            if (self.folder / kind).exists():  # otherwise a killed run has moved it
                self.store.put(kind, self.name, self.folder / kind)
        shutil.rmtree(self.folder)

    def _open(self) -> None:
        key = self.folder / "key"
        if not key.exists() or key.read_text() != self.key:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_bytes(key, self.key.encode())
        for partial in self.folder.rglob("*.partial"):
            partial.unlink()
        if self.complete:
            return
        for path in (self.folder / "written").glob("[0-9]*"):
            with suppress(StoreError):  # damaged by a power failure: write the shard again
                row, col = path.name.split(".")
                self._written[int(row), int(col)] = _read_part(path)[0]
        _recreate(self.folder / "labels" / "0", self.spec, "yx")

    def _labels(self) -> ShardedArray:
        return ShardedArray(self.folder / "labels" / "0")

    def _part_file(self, shard: Cell) -> Path:
        return self.folder / "written" / shard_key(shard)

    def _finish_scores(self, meta: Mapping[str, Any]) -> None:
        scores = self.folder / "scores"
        array = _recreate(scores / "0", ArraySpec(self.scores_shape, "uint8", 0), "cyx")
        part = lru_cache(_CACHED_PARTS)(lambda shard: _read_part(self._part_file(shard))[1])

        def blocks(shard: Cell) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
            for cell in array.spec.chunks_of_shard(shard):
                yield cell, self._chunk(cell, array.spec, part)

        rows, cols = map(range, array.spec.shards)
        shards: Iterator[Cell] = product(rows, cols)
        stored = {shard_key(shard): array.write_blocks(shard, blocks(shard)) for shard in shards}
        attributes = {**meta, "stored": {"0": stored}}
        layout.write_group(scores, score_attributes(self.name, self.store.grid, self.stride_px, attributes))

    def _chunk(self, cell: Cell, spec: ArraySpec, part: Any) -> NDArray[np.uint8]:
        """One chunk of the scores, from the parts that it overlaps."""
        n, shard_px, stride = spec.chunk_px, self.spec.shard_px, self.stride_px
        block = np.zeros(spec.chunk_shape, np.uint8)
        top, left = cell[0] * n, cell[1] * n
        lattice = (range(first * stride // shard_px, (first + n - 1) * stride // shard_px + 1) for first in (top, left))
        for shard in product(*lattice):
            if shard not in self._written:
                continue
            rows, cols = self.cells(shard)
            y1, y2 = max(rows.start, top), min(rows.stop, top + n)
            x1, x2 = max(cols.start, left), min(cols.stop, left + n)
            if y1 < y2 and x1 < x2:
                values = part(shard)[:, y1 - rows.start : y2 - rows.start, x1 - cols.start : x2 - cols.start]
                block[:, y1 - top : y2 - top, x1 - left : x2 - left] = values
        return block


def remove_finished(store: SlideStore, name: str) -> None:
    """Remove the temporary folder of a run that was killed after it moved its maps into the store."""
    folder = _folder(store, name)
    if (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)


def _folder(store: SlideStore, name: str) -> Path:
    return partial_path(store.path, "maps", name)


def _read_part(path: Path) -> tuple[int, NDArray[np.uint8]]:
    """Number of mask chunks and scores uint8 [class, rows, cols] of a finished shard."""
    data = path.read_bytes()
    body = data[:-4]
    if google_crc32c.value(body).to_bytes(4, "little") != data[-4:]:
        raise StoreError(f"{path}: damaged, the checksum does not match; delete it and run again")
    head, packed = body.split(b"\n", 1)
    facts = json.loads(head)
    return int(facts["chunks"]), np.frombuffer(imagecodecs.zstd_decode(packed), np.uint8).reshape(facts["shape"])


def _recreate(path: Path, spec: ArraySpec, axes: str) -> ShardedArray:
    """The array at `path` with new metadata: a killed run may have left them incomplete."""
    (path / "zarr.json").unlink(missing_ok=True)
    return layout.create_array(path, spec, axes)
