"""The random walk of IRNet (Ahn, Cho & Kwak, CVPR 2019): scores spread over a map up to its boundaries.

    A_ij = a_ij for neighbours (see `affinity`), A_ii = 1, else 0
    T    = A^beta element by element, its columns divided by their sums
    M*   = (M (1 - B)) T^t

with M as row vectors, so that each cell of M* is a weighted average of cells of M (1 - B) that no boundary separates
from it. B = 1 all around the map. T is never formed: a step adds shifted copies of the map. The result is that of
squaring the dense matrix log2(t) times, as published, at a cost linear in the cells of the map instead of quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsipipe.pseudolabel.shared.affinity import Offset, affinities, offsets, padded

STEPS, BETA, RADIUS = 4, 10.0, 5
"""Steps for fine mosaics of tissue (256 in the paper), and the published exponent and radius."""


@dataclass(frozen=True)
class Walk:
    """Parameters of a walk: steps t, exponent beta of affinities, and the radius, in cells, that neighbours lie within.

    The radius is 5 as published; that of training pairs, 10, is another constant.
    """

    steps: int = STEPS
    beta: float = BETA
    radius: int = RADIUS


def random_walk(maps: Tensor, boundary: Tensor, walk: Walk = Walk()) -> Tensor:
    """M*: maps float32 [B, K, h, w] and boundaries float32 0..1 [B, h, w] -> float32 [B, K, h, w].

    A cell with B = 1 becomes 0 and blocks the walk.
    """
    return spread(maps * (1 - boundary).unsqueeze(1), boundary, walk)


def spread(maps: Tensor, boundary: Tensor, walk: Walk) -> Tensor:
    """M T^t, the walk alone: maps float32 [B, K, h, w] and boundaries float32 0..1 [B, h, w] -> float32 [B, K, h, w].

    A cell with B = 1 is unchanged.
    """
    weights = edges(boundary, walk)
    degree = gathered(torch.ones_like(boundary).unsqueeze(1), weights, walk.radius)
    for _ in range(walk.steps):
        maps = gathered(maps, weights, walk.radius) / degree
    return maps


def edges(boundary: Tensor, walk: Walk) -> Tensor:
    """A^beta between every cell and its forward neighbours: [B, h, w] -> [B, P, h, w], 0 outside the map."""
    return affinities(padded(boundary, walk.radius, 1.0), walk.radius) ** walk.beta


def gathered(maps: Tensor, weights: Tensor, radius: int) -> Tensor:
    """M A^beta: every cell plus its weighted neighbours on both sides; maps [B, K, h, w], weights [B, P, h, w]."""
    out = maps.clone()
    for p, offset in enumerate(offsets(radius)):
        near, far = _ends(offset, maps.shape[-2], maps.shape[-1])
        weight = weights[:, p : p + 1, near[0], near[1]]
        out[..., near[0], near[1]] += weight * maps[..., far[0], far[1]]
        out[..., far[0], far[1]] += weight * maps[..., near[0], near[1]]
    return out


def _ends(offset: Offset, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the cells that have a neighbour at `offset`, and of those neighbours."""
    dy, dx = offset
    rows, cols = max(0, height - dy), max(0, width - abs(dx))
    left, right = max(0, -dx), max(0, dx)
    near = slice(0, rows), slice(left, left + cols)
    far = slice(dy, dy + rows), slice(right, right + cols)
    return near, far
