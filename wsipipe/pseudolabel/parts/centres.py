"""Instances by common centre (IRNet, Ahn, Cho & Kwak, CVPR 2019): pixels of one object point to the same place.

A displacement map D says of each cell x where its object's centre is. Following it, c <- clip(c + D(c)) from c = x,
brings cells to their centres; where |D| is small, a centre lies, and each connected group of such cells is one
cluster. The maps of the classes, cut to each cluster and walked by themselves, give one mask an object; objects are
split into connected parts at last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from wsipipe.pseudolabel.parts.walk import Walk, random_walk

FOLLOWED = 300
"""Times that displacements are followed, as published."""

CENTRE = 2.5
"""Length of a displacement, in cells, below which a cell belongs to a centre."""

BACKGROUND = 0.25
"""Share of the highest value that a class has to exceed, as published."""

FRAGMENT = 0.01
"""Parts of an object below this share of the map's cells have no score."""


@dataclass(frozen=True)
class Instance:
    """One object: its class (0..), its score 0..1 (0: a fragment), and where it is, bool [h, w]."""

    kind: int
    score: float
    mask: NDArray[np.bool_]


def followed(displacement: Tensor, times: int = FOLLOWED) -> Tensor:
    """Where each cell ends: displacements float [2, h, w] in cells (y, x) -> cells int64 [2, h, w].

    D is read bilinearly between cells, and no step leaves the map.
    """
    _, h, w = displacement.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    c = torch.stack([y, x]).to(displacement)
    last = torch.tensor([h - 1, w - 1]).to(displacement).view(2, 1, 1)
    for _ in range(times):
        grid = (2 * c / last.clamp_min(1) - 1).flip(0).movedim(0, -1)
        moved = F.grid_sample(displacement[None], grid[None], align_corners=True, padding_mode="border")[0]
        c = (c + moved).clamp(min=torch.zeros_like(last), max=last)
    return c.round().long()


def clusters(displacement: Tensor, times: int = FOLLOWED) -> NDArray[np.int64]:
    """The cluster that each cell points to: displacements float [2, h, w] -> int64 [h, w], 1.., 0 for none."""
    centres, _ = ndimage.label((displacement.norm(dim=0) < CENTRE).cpu().numpy(), np.ones((3, 3)))
    y, x = followed(displacement, times).cpu().numpy()
    return np.asarray(centres[y, x], np.int64)


def instances(maps: Tensor, boundary: Tensor, of_cluster: NDArray[np.int64], how: Walk) -> list[Instance]:
    """The objects of class maps float32 [K, h, w] with boundary float32 [h, w] and clusters int [h, w].

    Every cluster's share of every map walks alone; the strongest of them has a cell where it exceeds `BACKGROUND` of
    the highest value. Objects come by falling score, the highest value in them.
    """
    names = np.unique(of_cluster[of_cluster > 0]).tolist()
    if not names:
        return []
    member = torch.stack([torch.from_numpy(of_cluster == n).to(maps.device) for n in names])
    parts = (maps[:, None] * member).flatten(0, 1)
    walked = random_walk(parts[None], boundary[None], how)[0]
    walked = walked / walked.max().clamp_min(1e-5)
    top, winner = walked.max(0)
    value, owner = top.cpu().numpy(), winner.cpu().numpy()
    owner = np.where(value > BACKGROUND, owner, -1)
    found = []
    for i in np.unique(owner[owner >= 0]).tolist():
        pieces, count = ndimage.label(owner == i, np.ones((3, 3)))
        for piece in range(1, count + 1):
            mask = pieces == piece
            score = float(value[mask].max()) if mask.mean() >= FRAGMENT else 0.0
            found.append(Instance(i // len(names), score, mask))
    return sorted(found, key=lambda f: -f.score)
