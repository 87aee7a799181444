"""The losses of IRNet's boundary network (Ahn, Cho & Kwak, CVPR 2019), over pairs of cells with known seeds.

A seed map (0 background, 1.. classes, 255 unknown) tells which pairs of cells closer than a radius belong together:
P+_bg (both 0), P+_fg (equal and above 0), P- (different); pairs with an unknown end are left out. With a_ij the
affinity of a pair (see `shared.affinity`),

    L_B  = - 1 / (2 |P+_fg|) sum ln a - 1 / (2 |P+_bg|) sum ln a - 1 / |P-| sum ln(1 - a)
    L_fg = 1 / |P+_fg| sum |d_ij - t_ij|,   L_bg = 1 / |P+_bg| sum |d_ij|

with D the displacement map, d_ij = D(x_i) - D(x_j), and t_ij = x_j - x_i.

Deviations, with their reason: `by_class` takes the mean over P+_fg per class and then over classes, so that the most
common tissue does not dominate the loss; every value but 255 is a class (the released code knows only 20).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsipipe.labels import IGNORE
from wsipipe.pseudolabel.shared.affinity import offsets

EPS = 1e-5
"""Added inside logarithms and to counts, as in the released code."""


def sources(values: Tensor, radius: int) -> Tensor:
    """The cells whose forward neighbours all lie inside the map: [.., h, w] -> [.., h - (r - 1), w - 2 (r - 1)]."""
    reach = radius - 1
    return values[..., : values.shape[-2] - reach, reach : values.shape[-1] - reach]


def neighbours(values: Tensor, radius: int) -> Tensor:
    """The values at each offset from each source: [.., h, w] -> [.., P, h - (r - 1), w - 2 (r - 1)]."""
    reach = radius - 1
    rows, cols = values.shape[-2] - reach, values.shape[-1] - 2 * reach
    parts = [values[..., dy : dy + rows, reach + dx : reach + dx + cols] for dy, dx in offsets(radius)]
    return torch.stack(parts, -3)


@dataclass(frozen=True)
class Pairs:
    """Which pairs belong together: bool [B, P, rows, cols] each, as affinities; label: the seed of the source."""

    same_bg: Tensor
    same_fg: Tensor
    different: Tensor
    label: Tensor


def pair_sets(seeds: Tensor, radius: int) -> Pairs:
    """P+_bg, P+_fg and P- of a seed map: integers [B, h, w], 0 background, 1.. classes, 255 unknown."""
    near, far = sources(seeds, radius).unsqueeze(1), neighbours(seeds, radius)
    known = (near != IGNORE) & (far != IGNORE)
    same = known & (near == far)
    return Pairs(same & (near == 0), same & (near > 0), known & (near != far), near.expand_as(far))


def boundary_loss(affinity: Tensor, pairs: Pairs, by_class: bool) -> Tensor:
    """L_B of affinities float 0..1 [B, P, rows, cols] -> scalar; a set without pairs adds 0."""
    together, apart = -torch.log(affinity + EPS), -torch.log(1 - affinity + EPS)
    if by_class:
        classes = torch.unique(pairs.label[pairs.same_fg]).tolist()
        parts = [_mean(together, pairs.same_fg & (pairs.label == c)) for c in classes]
        fg = torch.stack(parts).mean() if parts else 0 * affinity.sum()
    else:
        fg = _mean(together, pairs.same_fg)
    return fg / 2 + _mean(together, pairs.same_bg) / 2 + _mean(apart, pairs.different)


def displacement_losses(displacement: Tensor, pairs: Pairs, radius: int) -> tuple[Tensor, Tensor]:
    """(L_fg, L_bg) of displacements float [B, 2, h, w] in cells (y, x); means over both components, as released."""
    d = sources(displacement, radius).unsqueeze(2) - neighbours(displacement, radius)
    t = torch.tensor(offsets(radius), dtype=d.dtype, device=d.device).T.view(1, 2, -1, 1, 1)
    fg, bg = (pairs.same_fg.unsqueeze(1).expand_as(d), pairs.same_bg.unsqueeze(1).expand_as(d))
    return _mean((d - t).abs(), fg), _mean(d.abs(), bg)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Sum over the entries `where` is true, divided by their number + `EPS`: 0 if there are none."""
    return torch.where(where, values, 0).sum() / (where.sum() + EPS)
