"""The grid of instances: small squares that each get a score, and the input that a network sees for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window, ceil_div
from wsipipe.store import SlideStore

BLOCK_PX = 1024
"""Side of the blocks that crops are cut from, so that neighbours share decoded pixels."""


@dataclass(frozen=True)
class InstanceGrid:
    """Geometry of instances in working px.

    instance_px: side of the square that a score is for. seen_px: side of the concentric square that the network sees;
    equal to instance_px without context. shrink: working px per input px of the network.
    """

    instance_px: int
    seen_px: int
    shrink: int

    def __post_init__(self) -> None:
        margin = self.seen_px - self.instance_px
        if (
            self.instance_px < 8
            or margin < 0
            or margin % 2
            or self.seen_px % self.shrink
            or self.instance_px % self.shrink
        ):
            raise ConfigError(
                f"instances of {self.instance_px} px seen as {self.seen_px} px at 1/{self.shrink}: a patch must "
                "divide into instances of at least 8 px, and both sizes by shrink; change patch_px, the number of "
                "instances per patch, or shrink"
            )
        if (margin // 2) % self.shrink:
            raise ConfigError(
                f"the context on each side, {margin // 2} px, does not divide by shrink {self.shrink}; change either"
            )

    @property
    def input_px(self) -> int:
        """Side of the network's input in its own px."""
        return self.seen_px // self.shrink

    def cells(self, store: SlideStore, min_tissue: float) -> NDArray[np.int32]:
        """Instances of a slide in usable patches, with `min_tissue` (0..1) of tissue: int32 [M, 2], (row, col)."""
        return self.overlapping(store, min_tissue, 1)

    def overlapping(self, store: SlideStore, min_tissue: float, overlap: int) -> NDArray[np.int32]:
        """Instances of a slide in steps of instance_px / `overlap` px: int32 [M, 2], (row, col) in steps, row by row.

        Each covers `overlap` x `overlap` steps, touches a usable patch, and has at least `min_tissue` of tissue.
        """
        step_px = self.instance_px // overlap
        tissue = store.tissue_grid(step_px)
        wanted = np.zeros(tissue.shape, bool)
        for w in store.patches().windows:
            x2, y2 = w.x_px + w.width_px, w.y_px + w.height_px
            wanted[w.y_px // step_px : ceil_div(y2, step_px), w.x_px // step_px : ceil_div(x2, step_px)] = True
        fraction = _window_sums(tissue, overlap) / overlap**2
        return np.argwhere((_window_sums(wanted, overlap) > 0) & (fraction >= min_tissue - 1e-6)).astype(np.int32)


def _window_sums(values: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Sum over the side x side window that starts at each cell, zero-padded: [h, w] -> float64 [h, w]."""
    padded = np.pad(values, ((0, side - 1), (0, side - 1))).astype(np.float64)
    sums: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).sum((2, 3))
    return sums


def corners_of(
    xy_px: NDArray[np.int32], instance_grid: InstanceGrid, bounds: Window | None = None
) -> NDArray[np.int64]:
    """Top left corners (x, y) of the squares that the network sees, int64 [M, 2]; arguments as in `read_crops`."""
    n, f = instance_grid.seen_px, instance_grid.shrink
    corner = xy_px.astype(np.int64) - (n - instance_grid.instance_px) // 2
    if bounds is None:
        return corner
    low = np.array([bounds.x_px, bounds.y_px])
    spare = np.array([bounds.width_px - n, bounds.height_px - n])
    high = low + np.maximum(spare // f * f, 0)  # in steps of f: all corners lie on one shrunk raster
    return np.clip(corner, low, high)


def read_crops(
    store: SlideStore, xy_px: NDArray[np.int32], instance_grid: InstanceGrid, bounds: Window | None = None
) -> NDArray[np.uint8]:
    """The network's input for the instances with top left corners (x, y) at `xy_px`, int [M, 2]: uint8 [M, 3, s, s].

    Squares that reach over `bounds` are shifted inside: a patch label says nothing about pixels outside its patch, and
    beyond the edge of a slide there are no pixels.
    """
    n, f = instance_grid.seen_px, instance_grid.shrink
    corner = corners_of(xy_px, instance_grid, bounds)
    out = np.empty((len(xy_px), 3, instance_grid.input_px, instance_grid.input_px), np.uint8)
    blocks = corner // BLOCK_PX
    for block in np.unique(blocks, axis=0):
        inside = np.flatnonzero((blocks == block).all(1))
        x1, y1 = corner[inside].min(0)
        x2, y2 = corner[inside].max(0) + n
        x2, y2 = x2 + (x1 - x2) % f, y2 + (y1 - y2) % f
        small = shrunk(store.read(Window(int(x1), int(y1), int(x2 - x1), int(y2 - y1))), f)
        for i in inside:
            x, y = (corner[i] - [x1, y1]) // f
            out[i] = small[y : y + instance_grid.input_px, x : x + instance_grid.input_px].transpose(2, 0, 1)
    return out


def shrunk(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means over factor x factor squares: uint8 [h, w, 3] -> uint8 [h // factor, w // factor, 3]."""
    if factor == 1:
        return rgb
    h, w = rgb.shape[0] // factor, rgb.shape[1] // factor
    tiles = rgb[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return np.asarray(tiles.sum((1, 3), dtype=np.float32) / factor**2 + 0.5, np.uint8)
