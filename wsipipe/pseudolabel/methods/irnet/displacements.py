"""Step 5: displacements of a whole slide, averaged over overlapping windows as class maps are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.methods.irnet.boundary import STRIDE
from wsipipe.pseudolabel.shared.slide_maps import WeightedMean, window_corners
from wsipipe.pseudolabel.shared.windows import WINDOWS_PER_CALL
from wsipipe.store import SlideStore


def displacement_px(instance_grid: InstanceGrid) -> int:
    """Side of a cell of displacements in working px."""
    return STRIDE * instance_grid.shrink


def slide_displacements(
    store: SlideStore,
    instance_grid: InstanceGrid,
    wanted: NDArray[np.bool_],
    displacements_of: Callable[[Tensor], Tensor],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Displacements (y, x) of a slide in cells of `displacement_px`, float32 [2, rows, cols], and where they are known.

    Only windows that hold a `wanted` cell, bool [rows, cols], are computed; elsewhere displacements are 0.
    displacements_of: windows uint8 [B, 3, s, s] -> displacements float [B, 2, s / 4, s / 4].
    """
    whole = InstanceGrid(instance_grid.seen_px, instance_grid.seen_px, instance_grid.shrink)
    cell_px = displacement_px(instance_grid)
    n = instance_grid.seen_px // cell_px
    mean, corners = WeightedMean(2, (wanted.shape[0], wanted.shape[1]), n), window_corners(wanted, n)
    for first in range(0, len(corners), WINDOWS_PER_CALL):
        some = corners[first : first + WINDOWS_PER_CALL]
        rgb = read_crops(store, (some[:, ::-1] * cell_px).astype(np.int32), whole)
        maps = displacements_of(torch.from_numpy(rgb)).float().cpu().numpy()
        for (row, col), values in zip(some.tolist(), maps, strict=True):
            mean.add((row, col), values)
    known = mean.weight > 0
    return np.divide(mean.total, mean.weight, out=mean.total, where=known), known
