"""Affinities of IRNet (Ahn, Cho & Kwak, CVPR 2019): how strongly neighbouring cells belong together.

Cells x_i are paired with those closer than a radius. With B a boundary map and Pi_ij the cells near the straight line
from x_i to x_j,

    a_ij = 1 - max over k in Pi_ij of B(x_k).

The released code drops cells whose forward neighbours are not all inside the map. Callers that extend the map with
`padded` keep these cells, so that small windows have pairs.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

Offset = tuple[int, int]
"""(dy, dx) in cells."""


def offsets(radius: int) -> list[Offset]:
    """All (dy, dx) shorter than `radius`, one of each pair of opposites: 34 for radius 5, 152 for 10."""
    right = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius)]
    return right + [(dy, dx) for dy, dx in below if dy**2 + dx**2 < radius**2]


def line(offset: Offset) -> list[Offset]:
    """Pi: the cells between (0, 0) and `offset`, both included, at a distance below 1 from the segment."""
    dy, dx = offset
    across = range(0, dx + 1) if dx >= 0 else range(dx, 1)
    box = [(y, x) for y in range(dy + 1) for x in across]
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]


def padded(values: Tensor, radius: int, fill: float) -> Tensor:
    """The map extended by `fill` for forward neighbours of all cells: [B, h, w] -> [B, h + r - 1, w + 2 (r - 1)]."""
    reach = radius - 1
    return F.pad(values, (reach, reach, 0, reach), value=fill)


def path_maxima(boundary: Tensor, radius: int) -> Tensor:
    """Max of B over Pi_ij for every cell i and offset: [B, h, w] -> [B, P, h - (r - 1), w - 2 (r - 1)].

    The gradient goes to one maximal cell per path, which is found as the maximum of ranks.
    """
    b, h, w = boundary.shape
    flat, reach = boundary.flatten(1), radius - 1
    rows, cols = h - reach, w - 2 * reach
    with torch.no_grad():
        by_rank = flat.argsort(stable=True)
        rank = torch.empty_like(by_rank).scatter_(1, by_rank, torch.arange(h * w, device=flat.device).expand(b, -1))
        rank = rank.to(torch.int32).view(b, h, w)
        highest = []
        for offset in offsets(radius):
            on_path = [rank[:, y : y + rows, reach + x : reach + x + cols] for y, x in line(offset)]
            highest.append(reduce(torch.maximum, on_path))
        cell = by_rank.gather(1, torch.stack(highest, 1).flatten(1).long())
    return flat.gather(1, cell).view(b, -1, rows, cols)


def affinities(boundary: Tensor, radius: int) -> Tensor:
    """a_ij of every cell and offset: boundary float 0..1 [B, h, w] -> [B, P, h - (r - 1), w - 2 (r - 1)]."""
    return 1 - path_maxima(boundary, radius)
