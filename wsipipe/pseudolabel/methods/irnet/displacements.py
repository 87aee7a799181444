"""Displacements of a whole slide: means over overlapping windows, as its class maps are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.methods.irnet.boundary import STRIDE
from wsipipe.pseudolabel.shared.windows import TOGETHER, add_faded, hat, window_corners
from wsipipe.store import SlideStore


def displacement_px(lattice: InstanceGrid) -> int:
    """Working px along a side of a cell of displacements."""
    return STRIDE * lattice.shrink


def slide_displacements(
    store: SlideStore,
    lattice: InstanceGrid,
    wanted: NDArray[np.bool_],
    displacements_of: Callable[[Tensor], Tensor],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Displacements (y, x) of a slide, in cells, float32 [2, rows, cols], and where there are any: bool [rows, cols].

    Windows that hold a `wanted` cell, bool [rows, cols], overlap by half and are averaged as those of class maps are
    (see `windows.slide_maps`); elsewhere displacements are 0. A cell has a side of `displacement_px`.
    displacements_of: windows
    uint8 [B, 3, s, s] -> their displacements float [B, 2, s / 4, s / 4].
    """
    whole = InstanceGrid(lattice.seen_px, lattice.seen_px, lattice.shrink)
    rows, cols = wanted.shape
    total, weights = np.zeros((2, rows, cols), np.float32), np.zeros((rows, cols), np.float32)
    cell_px = displacement_px(lattice)
    n = lattice.seen_px // cell_px
    hats, corners = hat(n), window_corners(wanted, n)
    for first in range(0, len(corners), TOGETHER):
        some = corners[first : first + TOGETHER]
        rgb = read_crops(store, (some[:, ::-1] * cell_px).astype(np.int32), whole)
        maps = displacements_of(torch.from_numpy(rgb)).float().cpu().numpy()
        for (r, c), values in zip(some.tolist(), maps, strict=True):
            add_faded(total, weights, (r, c), values, hats)
    known = weights > 0
    return np.divide(total, weights, out=total, where=known), known
