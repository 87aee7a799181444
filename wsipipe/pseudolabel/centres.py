"""Objects by common centre (IRNet, Ahn, Cho & Kwak, CVPR 2019): cells of one object point to the same place.

A displacement map D says of each cell x where its object's centre is. Following it, c <- clip(c + D(c)) from c = x,
brings cells to their centres; where |D| is small, a centre lies, and each connected group of such cells is one
cluster. An object is a connected part of the cells that one class is painted in and that point to one cluster.

Deviations: as published, the map of each class is cut to each cluster, each of these parts walks by itself, and the
strongest part takes a cell where it exceeds a threshold. Here the maps have walked already, uncut, before the mask was
painted, and a painted cell belongs to the cluster that it points to: a slide has thousands of clusters, walks of which
would cost as many times the walk of the slide and would move no more than the seams between them; and objects are the
mask, cut into pieces, whatever refined it. Cells that point to no centre are therefore not lost either: each connected
rest of a class is an object of its own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from torch import Tensor

FOLLOWED = 300
"""Times that displacements are followed, as published."""

CENTRE = 2.5
"""Length of a displacement, in cells, below which a cell belongs to a centre."""

BLOCK = 1 << 20
"""Cells that are followed at a time."""


def followed(displacement: Tensor, times: int = FOLLOWED, start: Tensor | None = None) -> Tensor:
    """Where each cell ends: displacements float [2, h, w] in cells (y, x) -> cells int64 [2, h, w].

    D is read bilinearly between cells, and no step leaves the map. With `start`, int64 [2, n], only these cells are
    followed: int64 [2, n].
    """
    _, h, w = displacement.shape
    if start is None:
        start = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    c = start.to(displacement).flatten(1)
    last = torch.tensor([[h - 1], [w - 1]]).to(displacement)
    for _ in range(times):
        grid = (2 * c / last.clamp_min(1) - 1).flip(0).T
        moved = F.grid_sample(displacement[None], grid[None, None], align_corners=True, padding_mode="border")[0, :, 0]
        c = (c + moved).clamp(min=torch.zeros_like(last), max=last)
    return c.round().long().reshape(start.shape)


def clusters(
    displacement: Tensor,
    times: int = FOLLOWED,
    known: NDArray[np.bool_] | None = None,
    wanted: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """The cluster that each cell points to: displacements float [2, h, w] -> int32 [h, w], 1.., 0 for none.

    known: bool [h, w], where there is a displacement (default: everywhere); elsewhere it has to be 0 and no centre
    lies there. wanted: bool [h, w], the cells that are followed (default: all); others get 0. All are followed through
    the whole map, `BLOCK` of them at a time, so that the map may be that of a slide.
    """
    near = (displacement.norm(dim=0) < CENTRE).cpu().numpy()
    centres, _ = ndimage.label(near if known is None else near & known, np.ones((3, 3)))
    out = np.zeros(near.shape, np.int32)
    rows = max(1, BLOCK // near.shape[1])
    for first in range(0, len(near), rows):
        some = np.ones_like(near[first : first + rows]) if wanted is None else wanted[first : first + rows]
        y, x = np.nonzero(some)
        if len(y):
            ends = followed(displacement, times, torch.from_numpy(np.stack([y + first, x]))).cpu().numpy()
            out[y + first, x] = centres[ends[0], ends[1]]
    return out


def connected(present: NDArray[np.bool_], cluster: NDArray[np.int32]) -> tuple[NDArray[np.uint32], int]:
    """Number the connected cells (of 8 neighbours) that are present and of one cluster, row by row; and count them.

    present bool [h, w], cluster int32 [h, w] (0, of none, being like any other) -> uint32 [h, w], 0 where not present.
    """
    out = np.zeros(present.shape, np.uint32)
    boxes = ndimage.find_objects(present.view(np.uint8))
    if not boxes:
        return out, 0
    box = boxes[0]  # around all that is present, which on a slide is much less than everything
    values = np.where(present[box], cluster[box] + 1, 0)
    out[box], count = measure.label(values, background=0, connectivity=2, return_num=True)
    return out, int(count)
