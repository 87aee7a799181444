"""Objects by common centre (IRNet, Ahn, Cho & Kwak, CVPR 2019): cells of one object point to the same place.

A displacement map D points from each cell x to the centre of its object. Following it, c <- clip(c + D(c)) from c = x,
brings cells to their centres. Centres lie where |D| is small, and each connected group of such cells is one cluster. An
object is a connected set of cells that are painted in one class and point to one cluster.

Deviations: as published, the map of each class is cut to each cluster, each part walks by itself, and the highest part
wins a cell where it exceeds a threshold. Here the uncut maps walk once, before the mask is painted, and a painted cell
belongs to the cluster that it points to. A slide has thousands of clusters: their walks would cost thousands of times
as much and would move nothing but the seams between them. So objects are pieces of the mask, whatever refined it, and
cells that point to no centre are not lost: each connected rest of a class is an object.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from torch import Tensor

STEPS = 300
"""Number of times that displacements are followed, as published."""

CENTRE = 2.5
"""Length of a displacement, in cells, below which a cell is part of a centre."""

BLOCK = 1 << 20
"""Cells that are followed at once."""


def follow(displacement: Tensor, steps: int = STEPS, start: Tensor | None = None) -> Tensor:
    """The cells where displacements end: float [2, h, w], (y, x) in cells -> int64 [2, h, w].

    D is interpolated bilinearly between cells, and no step leaves the map. start: int64 [2, n], the cells to follow
    (default: all); the result is then int64 [2, n].
    """
    _, h, w = displacement.shape
    if start is None:
        start = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    c = start.to(displacement).flatten(1)
    last = torch.tensor([[h - 1], [w - 1]]).to(displacement)
    for _ in range(steps):
        grid = (2 * c / last.clamp_min(1) - 1).flip(0).T
        moved = F.grid_sample(displacement[None], grid[None, None], align_corners=True, padding_mode="border")[0, :, 0]
        c = (c + moved).clamp(min=torch.zeros_like(last), max=last)
    return c.round().long().reshape(start.shape)


def find_clusters(
    displacement: Tensor,
    steps: int = STEPS,
    known: NDArray[np.bool_] | None = None,
    wanted: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """The cluster that each cell points to: displacements float [2, h, w] -> int32 [h, w], 1.., 0 for none.

    known: bool [h, w], where displacements are known (default: everywhere); elsewhere they must be 0 and make no
    centre. wanted: bool [h, w], the cells to follow (default: all); others get 0. Cells are followed in blocks, so that
    the map can be that of a whole slide.
    """
    near = (displacement.norm(dim=0) < CENTRE).cpu().numpy()
    centres, _ = ndimage.label(near if known is None else near & known, np.ones((3, 3)))
    out = np.zeros(near.shape, np.int32)
    rows = max(1, BLOCK // near.shape[1])
    for first in range(0, len(near), rows):
        some = np.ones_like(near[first : first + rows]) if wanted is None else wanted[first : first + rows]
        y, x = np.nonzero(some)
        if len(y):
            ends = follow(displacement, steps, torch.from_numpy(np.stack([y + first, x]))).cpu().numpy()
            out[y + first, x] = centres[ends[0], ends[1]]
    return out


def connected_cells(present: NDArray[np.bool_], cluster: NDArray[np.int32]) -> tuple[NDArray[np.uint32], int]:
    """Connected components (of 8 neighbours) of present cells of one cluster, numbered row by row, and their count.

    present: bool [h, w]. cluster: int32 [h, w]; 0, no cluster, is treated like a cluster. Returns uint32 [h, w], 0
    where not present.
    """
    out = np.zeros(present.shape, np.uint32)
    boxes = ndimage.find_objects(present.view(np.uint8))
    if not boxes:
        return out, 0
    box = boxes[0]  # around all present cells: a small part of a slide
    values = np.where(present[box], cluster[box] + 1, 0)
    out[box], count = measure.label(values, background=0, connectivity=2, return_num=True)
    return out, int(count)
