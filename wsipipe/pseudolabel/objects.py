"""Objects of a mask: `labels/<name>-objects` in the store and a table of them, by displacements to their centres.

Only a method that `FindsObjects` makes them, and only if its parameter `displacement` is on.
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

from wsipipe.geometry import Grid, Window
from wsipipe.pseudolabel.centres import clusters, connected
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FindsObjects, Method
from wsipipe.runtime.atomic import write_csv
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import Cell, ShardedArray

COLUMNS = ("object", "class", "score", "x_px0", "y_px0", "width_px0", "height_px0", "area_um2")
"""object: its number in the image. score: the highest score of the class in it, 0..1, 0 for a fragment. The box that
bounds it is in level-0 px of the slide."""

FRAGMENT = 0.01
"""Objects below this share of a window of the networks have the score 0, as published."""


@dataclass(frozen=True)
class Objects:
    """How the objects of the masks `labels/<name>` are made: by which method, where, and the folder of their tables."""

    method: Method
    params: Any
    lattice: InstanceGrid
    device: torch.device
    name: str
    folder: Path

    @property
    def wanted(self) -> bool:
        """Whether the parameters ask for objects of a method that has any."""
        return isinstance(self.method, FindsObjects) and self.params.displacement

    @property
    def _finder(self) -> FindsObjects:
        assert isinstance(self.method, FindsObjects)
        return self.method

    def current(self, store: SlideStore, digest: str, overwrite: bool) -> bool:
        """Whether nothing is to be made in `store`: what is wanted is there, made under the key `digest`.

        StoreError if objects were made under another key, unless `overwrite`.
        """
        if not self.wanted:
            return True
        return store.can_reuse("objects", self.name, digest, overwrite) and self.table(store).exists()

    def table(self, store: SlideStore) -> Path:
        """The CSV of the objects of a slide."""
        return self.folder / "objects" / f"{store.slide_id}.csv"

    def write(self, model: nn.Module, store: SlideStore, meta: Mapping[str, Any]) -> None:
        """Cut the mask that was just written into objects, and write their image and their table.

        Where they are not wanted only an old table goes: the store itself drops the objects of a mask that is
        replaced. meta: the attributes of the mask, `classes` among them. The table comes last: with it, all is there.
        """
        self.table(store).unlink(missing_ok=True)
        if not self.wanted:
            return
        classes: Sequence[str] = meta["classes"]
        cell_px = self._finder.displacement_px(self.lattice)
        painted = painted_cells(store.labels(self.name), len(classes), cell_px)
        cluster = self._clusters(model, store, np.logical_or.reduce(painted))
        numbers, kinds = numbered(painted, cluster)
        measures = Measures.of(len(kinds))
        shards = object_shards(store, self.name, numbers, cell_px, measures)
        store.write_objects(self.name, {**meta, "objects": len(kinds)}, shards)
        fragment_px = FRAGMENT * self.lattice.seen_px**2
        rows = measures.rows(store.grid, [classes[k] for k in kinds], fragment_px)
        write_csv(self.table(store), COLUMNS, rows)

    def _clusters(self, model: nn.Module, store: SlideStore, painted: NDArray[np.bool_]) -> NDArray[np.int32]:
        """The cluster that each painted cell points to: bool [rows, cols] -> int32 [rows, cols], 0 for none."""
        d, known = self._finder.displacements(model, store, self.lattice, painted, self.device)
        return clusters(torch.from_numpy(d).to(self.device), known=known, wanted=painted)


def painted_cells(mask: ShardedArray, classes: int, cell_px: int) -> NDArray[np.bool_]:
    """Which classes a mask paints in squares of `cell_px` px, even if only in a part: bool [classes, rows, cols]."""
    height, width = mask.spec.shape
    out = np.zeros((classes, -(-height // cell_px), -(-width // cell_px)), bool)
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
    """The cells that `size` px from `first` on touch, and where among these px each begins: int64 [n]."""
    cells = np.arange(first // cell_px, (first + size - 1) // cell_px + 1)
    return slice(int(cells[0]), int(cells[-1]) + 1), np.maximum(cells * cell_px - first, 0)


def _classes_in(values: NDArray[Any], classes: int) -> list[int]:
    """The classes, 0.., that mask values uint8 [h, w] hold."""
    count = np.bincount(values.ravel(), minlength=classes + 1)
    return np.flatnonzero(count[1 : classes + 1]).tolist()


def numbered(painted: NDArray[np.bool_], cluster: NDArray[np.int32]) -> tuple[NDArray[np.uint32], list[int]]:
    """Objects of cells: connected parts of a class that point to one cluster, numbered 1.. class by class.

    painted bool [K, rows, cols] and cluster int32 [rows, cols] -> numbers uint32 [K, rows, cols], 0 where the class is
    not painted, and the class (0..) of each object. A cell may hold parts of two classes.
    """
    numbers = np.zeros(painted.shape, np.uint32)
    kinds: list[int] = []
    for k, present in enumerate(painted):
        found, count = connected(present, cluster)
        numbers[k] = np.where(present, found + np.uint32(len(kinds)), 0)
        kinds += [k] * count
    return numbers, kinds


def object_shards(
    store: SlideStore, name: str, numbers: NDArray[np.uint32], cell_px: int, measures: Measures
) -> Iterator[tuple[Cell, NDArray[np.uint32]]]:
    """The objects of `labels/<name>` in working px, uint32 [h, w], shard by shard; `measures` takes them as they pass.

    A pixel that the mask paints in class k has the number of its cell in `numbers` [k], any other 0.
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
    """The row and the column, in squares of `side_px`, of each row and each column of pixels of a window."""
    rows, cols = window.y_px + np.arange(window.height_px), window.x_px + np.arange(window.width_px)
    return rows // side_px, cols // side_px


@dataclass(frozen=True)
class Measures:
    """What is measured of N objects while their image passes.

    px: int64 [N], pixels. box_px: int64 [N, 4], left, top, right and bottom (these two beyond it) in working px. top:
    uint8 [N], the highest score of its class in it, 255 = 1.0.
    """

    px: NDArray[np.int64]
    box_px: NDArray[np.int64]
    top: NDArray[np.uint8]

    @classmethod
    def of(cls, count: int) -> Measures:
        """Of objects of which nothing has been seen."""
        far = np.iinfo(np.int64).max
        return cls(np.zeros(count, np.int64), np.tile([far, far, -1, -1], (count, 1)), np.zeros(count, np.uint8))

    def add(self, window: Window, numbers: NDArray[np.uint32], own: NDArray[np.uint8]) -> None:
        """Take the objects of a window, uint32 [h, w], and the score of each pixel for its class, uint8 [h, w]."""
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
        """The rows of the table, `classes` being those of the objects; those below `fragment_px` score 0."""
        for i, (name, px, (x1, y1, x2, y2)) in enumerate(zip(classes, self.px, self.box_px, strict=True)):
            (left, top), (right, bottom) = grid.to_px0((x1, y1)), grid.to_px0((x2, y2))
            score = 0.0 if px < fragment_px else self.top[i] / 255
            box = (left, top, right - left, bottom - top)
            area = px * grid.mpp[0] * grid.mpp[1]
            cells = (i + 1, name, f"{score:.4f}", *(f"{v:.1f}" for v in box), f"{area:.2f}")
            yield dict(zip(COLUMNS, cells, strict=True))
