"""From scores to masks in a store: labels exclude classes, cells become pixels, glass is never painted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Window
from wsipipe.labels import IGNORE, Tissue
from wsipipe.pseudolabel.method import ScoreMap
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import Cell


class LabelConstraint(NamedTuple):
    """What a training row says of a slide.

    present: 0 or 1 for each class; a class with 0 is never painted there. box_px0: the (x, y, width, height) that the
    row is about in level-0 px, None for the whole slide.
    """

    present: tuple[int, ...]
    box_px0: tuple[float, float, float, float] | None = None


def excluded_cells(
    constraints: Sequence[LabelConstraint], classes: int, store: SlideStore, stride_px: int
) -> NDArray[np.bool_]:
    """Where a training label says that a class is absent: bool [classes, rows, cols], one cell per `stride_px` px.

    A slide label applies to all cells, a region or patch label to the cells whose centre lies in its box.
    """
    rows, cols = store.grid.cells(stride_px)
    excluded = np.zeros((classes, rows, cols), bool)
    centre = (np.arange(max(rows, cols)) + 0.5) * stride_px
    for present, box in constraints:
        inside = np.ones((rows, cols), bool)
        if box is not None:
            w = store.grid.window_of_px0(box)
            in_y = (centre[:rows] >= w.y_px) & (centre[:rows] < w.y_px + w.height_px)
            in_x = (centre[:cols] >= w.x_px) & (centre[:cols] < w.x_px + w.width_px)
            inside = in_y[:, None] & in_x[None, :]
        excluded[[k for k, is_present in enumerate(present) if not is_present]] |= inside
    return excluded


def apply_constraints(scores: ScoreMap, constraints: Sequence[LabelConstraint], store: SlideStore) -> ScoreMap:
    """Scores with a class set to 0 wherever a training label says that it is absent."""
    return scores.without(excluded_cells(constraints, len(scores.values), store, scores.stride_px))


def paint_mask(
    mask: NDArray[np.uint8], stride_px: int, store: SlideStore, constraints: Sequence[LabelConstraint] = ()
) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
    """The mask at full resolution, shard by shard: cells as squares of pixels, glass 0, invalid pixels 255.

    mask: uint8 [rows, cols], one cell per `stride_px` px. Inside the boxes of `constraints` absent classes are removed
    pixel by pixel, since a box need not align with the cells.
    """
    tissue = store.labels("tissue")
    for shard, window in shard_windows(tissue.spec):
        rows = (window.y_px + np.arange(window.height_px)) // stride_px
        cols = (window.x_px + np.arange(window.width_px)) // stride_px
        full = mask[np.ix_(rows, cols)]
        for present, box in constraints:
            if box is not None:
                _erase_absent(full, window, store.grid.window_of_px0(box), present)
        what = tissue.read(window)
        full[what == Tissue.GLASS] = 0
        full[what == Tissue.INVALID] = IGNORE
        yield shard, full


def _erase_absent(mask: NDArray[np.uint8], window: Window, box: Window, present: Sequence[int]) -> None:
    """Set classes whose entry in `present` is 0 to 0 inside `box`; `mask` is uint8 [h, w] of the window."""
    inside = box.intersect(window)
    y, x = inside.y_px - window.y_px, inside.x_px - window.x_px
    part = mask[y : y + inside.height_px, x : x + inside.width_px]
    for k, is_present in enumerate(present):
        if not is_present:
            part[part == k + 1] = 0
