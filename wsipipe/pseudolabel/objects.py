"""Objects of a mask: `labels/<name>-objects` in the store and a CSV, by displacements to object centres.

Only a method that `FindsObjects` has objects, and only if its parameter `displacement` is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from wsipipe.geometry import Grid, Window, ceil_div
from wsipipe.pseudolabel.centres import connected_cells, find_clusters
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FindsObjects, Method, ScoreContext
from wsipipe.runtime.atomic import write_csv
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import Cell, ShardedArray

COLUMNS = ("object", "class", "score", "x_px0", "y_px0", "width_px0", "height_px0", "area_um2")
"""object: number in the image. score: highest score of its class inside it, 0..1, 0 for a fragment. The bounding box is
in level-0 px of the slide."""

FRAGMENT = 0.01
"""Objects smaller than this fraction of a window of the networks get the score 0, as published."""


@dataclass(frozen=True)
class Objects:
    """Cuts the masks `labels/<name>` of a method into objects; tables go to `folder`."""

    method: Method
    params: Any
    instance_grid: InstanceGrid
    device: torch.device
    name: str
    folder: Path

    @property
    def wanted(self) -> bool:
        """Whether the method finds objects and its parameters ask for them."""
        return isinstance(self.method, FindsObjects) and self.params.displacement

    @property
    def _finder(self) -> FindsObjects:
        assert isinstance(self.method, FindsObjects)
        return self.method

    def current(self, store: SlideStore, digest: str, overwrite: bool) -> bool:
        """Whether `store` needs no objects, or has those made under the key `digest`.

        StoreError if it has objects made under another key, unless `overwrite`.
        """
        if not self.wanted:
            return True
        return store.can_reuse("objects", self.name, digest, overwrite) and self.table(store).exists()

    def table(self, store: SlideStore) -> Path:
        """The CSV of the objects of a slide."""
        return self.folder / "objects" / f"{store.slide_id}.csv"

    def write(self, model: nn.Module, store: SlideStore, meta: Mapping[str, Any]) -> None:
        """Cut the mask, just written, into objects; write their image, and last their table, which marks completion.

        meta: the attributes of the mask, including `classes`. If objects are not wanted, only an old table is deleted;
        the store itself drops the objects of a replaced mask.
        """
        self.table(store).unlink(missing_ok=True)
        if not self.wanted:
            return
        classes: Sequence[str] = meta["classes"]
        cell_px = self._finder.displacement_px(self.instance_grid)
        painted = painted_cells(store.labels(self.name), len(classes), cell_px)
        cluster = self._clusters(model, store, np.logical_or.reduce(painted))
        numbers, kinds = number_objects(painted, cluster)
        measures = Measures.empty(len(kinds))
        shards = object_shards(store, self.name, numbers, cell_px, measures)
        store.write_objects(self.name, {**meta, "objects": len(kinds)}, shards)
        fragment_px = FRAGMENT * self.instance_grid.seen_px**2
        rows = measures.rows(store.grid, [classes[k] for k in kinds], fragment_px)
        write_csv(self.table(store), COLUMNS, rows)

    def _clusters(self, model: nn.Module, store: SlideStore, painted: NDArray[np.bool_]) -> NDArray[np.int32]:
        """The cluster that each painted cell points to: bool [rows, cols] -> int32 [rows, cols], 0 for none."""
        context = ScoreContext(store, self.instance_grid, self.device)
        d, known = self._finder.displacements(model, context, painted)
        return find_clusters(torch.from_numpy(d).to(self.device), known=known, wanted=painted)


def painted_cells(mask: ShardedArray, classes: int, cell_px: int) -> NDArray[np.bool_]:
    """Which classes a mask holds anywhere in squares of `cell_px` px: bool [classes, rows, cols]."""
    height, width = mask.spec.shape
    out = np.zeros((classes, ceil_div(height, cell_px), ceil_div(width, cell_px)), bool)
    for _, window in shard_windows(mask.spec):
        values = mask.read(window)
        (rows, top), (cols, left) = (
            _cells(first, size, cell_px)
            for first, size in ((window.y_px, window.height_px), (window.x_px, window.width_px))
        )
        for k in _classes_in(values, classes):
            by_row = np.logical_or.reduceat(values == k + 1, top, axis=0)
            out[k, rows, cols] |= np.logical_or.reduceat(by_row, left, axis=1)
    return out


def _cells(first: int, size: int, cell_px: int) -> tuple[slice, NDArray[np.int64]]:
    """The cells that `size` px starting at `first` touch, and the first of these px in each cell: int64 [n]."""
    cells = np.arange(first // cell_px, (first + size - 1) // cell_px + 1)
    return slice(int(cells[0]), int(cells[-1]) + 1), np.maximum(cells * cell_px - first, 0)


def _classes_in(values: NDArray[Any], classes: int) -> list[int]:
    """The classes, 0.., in mask values uint8 [h, w]."""
    count = np.bincount(values.ravel(), minlength=classes + 1)
    return np.flatnonzero(count[1 : classes + 1]).tolist()


def number_objects(painted: NDArray[np.bool_], cluster: NDArray[np.int32]) -> tuple[NDArray[np.uint32], list[int]]:
    """Connected cells of a class that point to one cluster, numbered 1.. class by class.

    painted: bool [K, rows, cols]; a cell may hold several classes. cluster: int32 [rows, cols]. Returns numbers uint32
    [K, rows, cols], 0 where the class is not painted, and the class (0..) of each object.
    """
    numbers = np.zeros(painted.shape, np.uint32)
    kinds: list[int] = []
    for k, present in enumerate(painted):
        found, count = connected_cells(present, cluster)
        numbers[k] = np.where(present, found + np.uint32(len(kinds)), 0)
        kinds += [k] * count
    return numbers, kinds


def object_shards(
    store: SlideStore, name: str, numbers: NDArray[np.uint32], cell_px: int, measures: Measures
) -> Iterator[tuple[Cell, NDArray[np.uint32]]]:
    """The objects of `labels/<name>` in working px, uint32 [h, w], shard by shard; each shard is added to `measures`.

    A pixel of class k gets the number of its cell in `numbers[k]`, any other pixel 0.
    """
    mask, scores = store.labels(name), store.scores(name)
    stride_px = int(store.attributes("scores", name)["stride_px"])
    for shard, window in shard_windows(store.mask_spec):
        values = mask.read(window)
        cell, (rows, cols) = np.ix_(*_squares(window, cell_px)), _squares(window, stride_px)
        y, x = int(rows[0]), int(cols[0])
        p = scores.read(Window(x, y, int(cols[-1]) - x + 1, int(rows[-1]) - y + 1))
        full, own = np.zeros(values.shape, np.uint32), np.zeros(values.shape, np.uint8)
        for k in _classes_in(values, len(numbers)):
            of_class = values == k + 1
            full[of_class] = numbers[k][cell][of_class]
            own[of_class] = p[k][np.ix_(rows - y, cols - x)][of_class]
        measures.add(window, full, own)
        yield shard, full


def _squares(window: Window, side_px: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row and column, in squares of `side_px`, of the pixel rows and columns of a window: int64 [h], [w]."""
    rows, cols = window.y_px + np.arange(window.height_px), window.x_px + np.arange(window.width_px)
    return rows // side_px, cols // side_px


@dataclass(frozen=True)
class Measures:
    """Measures of N objects, collected shard by shard.

    px: int64 [N], number of pixels. box_px: int64 [N, 4], left, top, right and bottom (the latter two exclusive) in
    working px. top: uint8 [N], highest score of the object's class inside it, 255 = 1.0.
    """

    px: NDArray[np.int64]
    box_px: NDArray[np.int64]
    top: NDArray[np.uint8]

    @classmethod
    def empty(cls, count: int) -> Measures:
        """Measures of `count` objects before the first shard."""
        far = np.iinfo(np.int64).max
        return cls(np.zeros(count, np.int64), np.tile([far, far, -1, -1], (count, 1)), np.zeros(count, np.uint8))

    def add(self, window: Window, numbers: NDArray[np.uint32], own: NDArray[np.uint8]) -> None:
        """Add a window: object numbers uint32 [h, w], and the score of each pixel for its class, uint8 [h, w]."""
        here = numbers > 0
        index = numbers[here].astype(np.int64) - 1
        if not len(index):
            return
        count = np.bincount(index, minlength=len(self.px))
        self.px[:] += count
        np.maximum.at(self.top, index, own[here])
        places = ndimage.find_objects(numbers.astype(np.int32))
        for i in np.flatnonzero(count).tolist():
            rows, cols = places[i]
            box = self.box_px[i]
            low, high = (cols.start + window.x_px, rows.start + window.y_px), (cols.stop, rows.stop)
            box[:2] = np.minimum(box[:2], low)
            box[2:] = np.maximum(box[2:], np.add(high, (window.x_px, window.y_px)))

    def rows(self, grid: Grid, classes: Sequence[str], fragment_px: float) -> Iterator[dict[str, object]]:
        """The rows of the table; `classes` are those of the objects. Objects below `fragment_px` pixels score 0."""
        for i, (name, px, (x1, y1, x2, y2)) in enumerate(zip(classes, self.px, self.box_px, strict=True)):
            (left, top), (right, bottom) = grid.to_px0((x1, y1)), grid.to_px0((x2, y2))
            score = 0.0 if px < fragment_px else self.top[i] / 255
            box = (left, top, right - left, bottom - top)
            area = px * grid.mpp[0] * grid.mpp[1]
            cells = (i + 1, name, f"{score:.4f}", *(f"{v:.1f}" for v in box), f"{area:.2f}")
            yield dict(zip(COLUMNS, cells, strict=True))
