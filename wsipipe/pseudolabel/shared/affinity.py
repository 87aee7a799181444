"""Affinities of IRNet (Ahn, Cho & Kwak, CVPR 2019): which pairs of cells no boundary parts, and the losses over them.

Cells x_i of a grid are paired with those at a distance below a radius. With B a boundary map and Pi_ij the cells near
the straight line from x_i to x_j,

    a_ij = 1 - max over k in Pi_ij of B(x_k).

A seed map (0 background, 1.. classes, 255 unsure) says of pairs whether they belong together: P+_bg (both 0),
P+_fg (equal and above 0), P- (different); a pair with an unsure end takes no part. Then

    L_B  = - 1 / (2 |P+_fg|) sum ln a - 1 / (2 |P+_bg|) sum ln a - 1 / |P-| sum ln(1 - a)
    L_fg = 1 / |P+_fg| sum |d_ij - t_ij|,   L_bg = 1 / |P+_bg| sum |d_ij|

with D the displacement map, d_ij = D(x_i) - D(x_j), and t_ij = x_j - x_i.

Deviations, with their reason: `by_class` takes the mean over P+_fg class by class and then over the classes, so that
the commonest tissue does not own the loss; every value but 255 is a class (the released code knows only 20). The
released code also drops cells whose forward neighbours are not all inside the grid; a caller that pads the grid by
`padded` keeps them, which lets small windows take part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.labels import IGNORE

Offset = tuple[int, int]
"""(dy, dx) in cells."""

EPS = 1e-5
"""Added inside logarithms and to counts, as in the released code."""


def offsets(radius: int) -> list[Offset]:
    """All (dy, dx) at a distance below `radius`, one of each pair of opposite ones: 34 for radius 5, 152 for 10."""
    right = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius)]
    return right + [(dy, dx) for dy, dx in below if dy**2 + dx**2 < radius**2]


def line(offset: Offset) -> list[Offset]:
    """Pi: the cells of the box from (0, 0) to `offset` that lie less than 1 beside the segment; both ends are in."""
    dy, dx = offset
    across = range(0, dx + 1) if dx >= 0 else range(dx, 1)
    box = [(y, x) for y in range(dy + 1) for x in across]
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]


def padded(values: Tensor, radius: int, fill: float) -> Tensor:
    """Room for the forward neighbours of every cell: [B, h, w] -> [B, h + r - 1, w + 2 (r - 1)], new cells `fill`."""
    reach = radius - 1
    return F.pad(values, (reach, reach, 0, reach), value=fill)


def sources(values: Tensor, radius: int) -> Tensor:
    """The cells all of whose forward neighbours are inside: [.., h, w] -> [.., h - (r - 1), w - 2 (r - 1)]."""
    reach = radius - 1
    return values[..., : values.shape[-2] - reach, reach : values.shape[-1] - reach]


def neighbours(values: Tensor, radius: int) -> Tensor:
    """The value at each offset from each source: [.., h, w] -> [.., P, h - (r - 1), w - 2 (r - 1)]."""
    reach = radius - 1
    rows, cols = values.shape[-2] - reach, values.shape[-1] - 2 * reach
    parts = [values[..., dy : dy + rows, reach + dx : reach + dx + cols] for dy, dx in offsets(radius)]
    return torch.stack(parts, -3)


def path_maxima(boundary: Tensor, radius: int) -> Tensor:
    """Max of B over Pi_ij for every source i and offset: [B, h, w] -> [B, P, h - (r - 1), w - 2 (r - 1)].

    The gradient goes to one cell of each path where B is largest. To find it, maxima are taken of the ranks of cells.
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
    """a_ij of every source and offset: boundary float 0..1 [B, h, w] -> [B, P, h - (r - 1), w - 2 (r - 1)]."""
    return 1 - path_maxima(boundary, radius)


@dataclass(frozen=True)
class Pairs:
    """Which pairs belong together: bool [B, P, rows, cols] each, like `affinities`; label: the seed of the source."""

    same_bg: Tensor
    same_fg: Tensor
    different: Tensor
    label: Tensor


def pair_sets(seeds: Tensor, radius: int) -> Pairs:
    """P+_bg, P+_fg and P- of a seed map: integers [B, h, w], 0 background, 1.. classes, 255 unsure."""
    near, far = sources(seeds, radius).unsqueeze(1), neighbours(seeds, radius)
    sure = (near != IGNORE) & (far != IGNORE)
    same = sure & (near == far)
    return Pairs(same & (near == 0), same & (near > 0), sure & (near != far), near.expand_as(far))


def boundary_loss(affinity: Tensor, pairs: Pairs, by_class: bool) -> Tensor:
    """L_B of affinities float 0..1 [B, P, rows, cols] -> scalar; a set without pairs adds nothing."""
    together, apart = -torch.log(affinity + EPS), -torch.log(1 - affinity + EPS)
    if by_class:
        classes = torch.unique(pairs.label[pairs.same_fg]).tolist()
        parts = [_mean(together, pairs.same_fg & (pairs.label == c)) for c in classes]
        fg = torch.stack(parts).mean() if parts else 0 * affinity.sum()
    else:
        fg = _mean(together, pairs.same_fg)
    return fg / 2 + _mean(together, pairs.same_bg) / 2 + _mean(apart, pairs.different)


def displacement_losses(displacement: Tensor, pairs: Pairs, radius: int) -> tuple[Tensor, Tensor]:
    """(L_fg, L_bg) of displacements float [B, 2, h, w] in cells (y, x); as released, means over the two components."""
    d = sources(displacement, radius).unsqueeze(2) - neighbours(displacement, radius)
    t = torch.tensor(offsets(radius), dtype=d.dtype, device=d.device).T.view(1, 2, -1, 1, 1)
    fg, bg = (pairs.same_fg.unsqueeze(1).expand_as(d), pairs.same_bg.unsqueeze(1).expand_as(d))
    return _mean((d - t).abs(), fg), _mean(d.abs(), bg)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Sum over the chosen, divided by their number + `EPS`: 0 if there are none."""
    return torch.where(chosen, values, 0).sum() / (chosen.sum() + EPS)
