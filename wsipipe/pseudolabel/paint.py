"""From scores to masks in a store: what labels exclude is taken out, cells become pixels, glass is never painted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.pseudolabel.method import ScoreMap
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import Cell

Rule = tuple[tuple[int, ...], tuple[float, float, float, float] | None]
"""What a training row says of a slide: 0 or 1 for each class, in a box of level-0 px or (None) everywhere."""


def excluded_cells(rules: Sequence[Rule], classes: int, store: SlideStore, stride_px: int) -> NDArray[np.bool_]:
    """Where a training label says that a class is absent: bool [classes, rows, cols], a cell every `stride_px` px.

    A row of the whole slide speaks of all of it, a region or patch row only of the cells whose centre lies in its box.
    """
    rows, cols = store.grid.cells(stride_px)
    excluded = np.zeros((classes, rows, cols), bool)
    centre = (np.arange(max(rows, cols)) + 0.5) * stride_px
    for label, box in rules:
        inside = np.ones((rows, cols), bool)
        if box is not None:
            w = store.grid.window_of_px0(box)
            in_y = (centre[:rows] >= w.y_px) & (centre[:rows] < w.y_px + w.height_px)
            in_x = (centre[:cols] >= w.x_px) & (centre[:cols] < w.x_px + w.width_px)
            inside = in_y[:, None] & in_x[None, :]
        excluded[[k for k, present in enumerate(label) if not present]] |= inside
    return excluded


def gate(scores: ScoreMap, rules: Sequence[Rule], store: SlideStore) -> ScoreMap:
    """Scores with a class set to 0 wherever a training label says that it is absent."""
    return scores.without(excluded_cells(rules, len(scores.values), store, scores.stride_px))


def painted(
    mask: NDArray[np.uint8], stride_px: int, store: SlideStore, rules: Sequence[Rule] = ()
) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
    """The mask at full resolution, shard by shard: cells enlarged, glass 0, invalid pixels 255.

    Inside a box of `rules` an absent class is taken out pixel by pixel, as the box need not lie on the lattice.
    """
    tissue = store.labels("tissue")
    for shard, window in shard_windows(tissue.spec):
        rows = (window.y_px + np.arange(window.height_px)) // stride_px
        cols = (window.x_px + np.arange(window.width_px)) // stride_px
        full = mask[np.ix_(rows, cols)]
        for label, box in rules:
            if box is not None:
                _take_out(full, window, store.grid.window_of_px0(box), label)
        what = tissue.read(window)
        full[what == 0] = 0
        full[what == IGNORE] = IGNORE
        yield shard, full


def _take_out(mask: NDArray[np.uint8], at: Window, box: Window, label: Sequence[int]) -> None:
    """Set the classes that `label` says are absent to 0 inside `box`; `mask` is uint8 [h, w] of the window `at`."""
    y, x = max(0, box.y_px - at.y_px), max(0, box.x_px - at.x_px)
    part = mask[y : max(y, box.y_px + box.height_px - at.y_px), x : max(x, box.x_px + box.width_px - at.x_px)]
    for k, present in enumerate(label):
        if not present:
            part[part == k + 1] = 0
