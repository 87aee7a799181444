"""Maps of a whole slide from maps of windows that overlap by half, averaged with weights that fade at their edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.method import ScoreContext
from wsipipe.pseudolabel.shared.windows import WINDOWS_PER_CALL, read_tissue
from wsipipe.store import SlideStore

MapsOf = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""rgb uint8 [B, 3, s, s], tissue bool [B, s, s] and excluded classes bool [B, K, n, n] or None of windows -> their
maps, float [B, channels, h, w]."""


def slide_maps(context: ScoreContext, min_tissue: float, channels: int, maps_of: MapsOf) -> NDArray[np.float32]:
    """The maps of a whole slide, one value per instance: float32 [channels, rows, cols], nan where not scored.

    Windows start at the top left corner of the slide and overlap by half. Their maps are resized bilinearly to their
    cells, n along each side, and averaged over the windows that cover a cell with the weights `tent`, so that no seam
    shows. Cells with less than `min_tissue` (0..1) of tissue are not scored.
    """
    store, grid = context.store, context.instance_grid
    n = grid.seen_px // grid.instance_px
    known = np.zeros(store.grid.cells(grid.instance_px), bool)
    cells = grid.cells(store, min_tissue)
    known[cells[:, 0], cells[:, 1]] = True
    mean = WeightedMean(channels, known.shape, n)
    corners = window_corners(known, n)
    for first in range(0, len(corners), WINDOWS_PER_CALL):
        some = corners[first : first + WINDOWS_PER_CALL]
        excluded = None if context.excluded is None else crop_cells(context.excluded, some, n)
        maps = _maps_at(store, some * grid.instance_px, grid, maps_of, excluded)
        for (row, col), values in zip(some.tolist(), maps, strict=True):
            mean.add((row, col), values)
    return np.where(known, mean.total / np.where(known, mean.weight, 1), np.nan).astype(np.float32)


class WeightedMean:
    """A mean over windows of n x n cells.

    total: float32 [channels, rows, cols], weighted sums. weight: float32 [rows, cols], 0 where no window was added.
    """

    def __init__(self, channels: int, shape: tuple[int, int], n: int) -> None:
        self.total = np.zeros((channels, *shape), np.float32)
        self.weight = np.zeros(shape, np.float32)
        self._tent = tent(n)

    def add(self, corner: tuple[int, int], values: NDArray[np.float32]) -> None:
        """Add a window, float32 [channels, n, n], with its top left cell at `corner` (row, col)."""
        (r, c), (rows, cols), n = corner, self.weight.shape, len(self._tent)
        self.total[:, r : r + n, c : c + n] += (values * self._tent)[:, : rows - r, : cols - c]
        self.weight[r : r + n, c : c + n] += self._tent[: rows - r, : cols - c]


def tent(side: int) -> NDArray[np.float32]:
    """Weights of a window of side x side cells, float32 [side, side] above 0: 1, 2, .., 2, 1 along rows and columns.

    Where windows overlap by half they add up to a constant. A window counts less towards its edges, where its network
    has seen least.
    """
    along = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)).astype(np.float32)
    return np.outer(along, along)


def crop_cells(cells: NDArray[np.bool_], corners: NDArray[np.int64], side: int) -> Tensor:
    """Windows of side x side cells, top left at `corners` int [M, 2]: bool [K, rows, cols] -> [M, K, side, side]."""
    padded = np.pad(cells, ((0, 0), (0, side), (0, side)))
    return torch.from_numpy(np.stack([padded[:, r : r + side, c : c + side] for r, c in corners.tolist()]))


def window_corners(known: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Top left cells (row, col), int64 [M, 2], of windows of side x side cells that hold a known cell.

    Windows overlap by half; the last of a row or column is shifted to end at the edge of `known`, bool [rows, cols].
    """

    def starts(length: int) -> list[int]:
        return sorted({max(0, min(i, length - side)) for i in range(0, length, max(1, side // 2))})

    corners = [(r, c) for r in starts(known.shape[0]) for c in starts(known.shape[1])]
    holding = [(r, c) for r, c in corners if known[r : r + side, c : c + side].any()]
    return np.array(holding, np.int64).reshape(-1, 2)


def _maps_at(
    store: SlideStore, corner_px: NDArray[np.int64], grid: InstanceGrid, maps_of: MapsOf, excluded: Tensor | None
) -> Iterator[NDArray[np.float32]]:
    """Maps of windows with top left corners (y, x), int64 [M, 2], resized to their cells: [channels, n, n] each."""
    n = grid.seen_px // grid.instance_px
    instance_px = (corner_px[:, ::-1] + (grid.seen_px - grid.instance_px) // 2).astype(np.int32)
    rgb = torch.from_numpy(read_crops(store, instance_px, grid))
    tissue = torch.from_numpy(read_tissue(store, instance_px, grid))
    maps = maps_of(rgb, tissue, excluded).float()
    yield from F.interpolate(maps, size=(n, n), mode="bilinear", align_corners=False).cpu().numpy()
