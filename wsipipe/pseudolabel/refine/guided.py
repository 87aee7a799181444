"""Refinement by the guided filter (He, Sun and Tang, IEEE TPAMI 35, 2013): evidence is smoothed, but not across edges.

In a square window w_k the filtered map is linear in the guide I, q_i = a_k^T I_i + b_k, with

    a_k = (S_k + eps U)^-1 (mean_k(I p) - mean_k(I) mean_k(p))     (eq. 5, in its form for a colour guide)
    b_k = mean_k(p) - a_k^T mean_k(I)                              (eq. 6)
    q_i = mean_i(a)^T I_i + mean_i(b)                              (eq. 8)

S_k is the covariance of the guide in the window, U the identity. All means are box means by running sums, so the cost
does not depend on the radius.

Deviations: means in a, b and q are over the known cells of a window alone, so that unknown cells and cells outside the
map have no influence; sums are in float64, as differences of running sums require.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.pseudolabel.params import NamedParams


@dataclass(frozen=True)
class Params(NamedParams):
    """Parameters of the guided filter."""

    NAME = "guided"

    radius_um: float = option(32.0, "half the side of a window in um; at least one cell")
    eps: float = option(0.001, "variance of colour (0..1) up to which a window counts as flat")
    grey: bool = option(False, "guide by brightness alone: fewer edges are kept, in a third of the time")

    def __post_init__(self) -> None:
        self.check_positive("radius_um", "eps")


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Evidence float32 [C, h, w] guided by rgb uint8 [3, h, w], clipped to 0..1; known bool [h, w].

    Unknown cells have no influence and are returned unchanged.
    """
    guide = rgb.float() / 255
    if params.grey:
        guide = guide.mean(0, keepdim=True)
    radius = max(1, round(params.radius_um / cell_um))
    q = guided_filter(evidence, guide, radius, params.eps, known).clamp(0, 1)
    return torch.where(known, q, evidence)


def guided_filter(p: Tensor, guide: Tensor, radius_px: int, eps: float, known: Tensor | None = None) -> Tensor:
    """q: float32 [C, h, w], the maps p float [C, h, w] smoothed in windows of 2 radius_px + 1 cells a side.

    guide: float [G, h, w], 0..1, grey (G = 1) or colour. eps: variance of the guide up to which it counts as flat,
    above
    0. known: bool [h, w], None for all; other cells are returned unchanged. Next to strong edges values may slightly
    exceed the range of p.
    """
    if radius_px < 1 or eps <= 0:
        raise ValueError(f"guided filter: a radius of {radius_px} cells is below 1, or eps {eps} is not above 0")
    if guide.shape[1:] != p.shape[1:]:
        raise ValueError(f"guide of shape {tuple(guide.shape)} for maps of shape {tuple(p.shape)}")
    takes_part = torch.ones_like(p[0], dtype=torch.bool) if known is None else known
    mean = box_mean(takes_part, radius_px)
    values = torch.where(takes_part, p, 0).double()
    i = guide.double()
    g, size = len(i), p.shape[1:]
    mean_i, mean_p = mean(i), mean(values)
    ii = mean((i[:, None] * i).reshape(g * g, *size)).view(g, g, *size) - mean_i[:, None] * mean_i
    ip = mean((i[:, None] * values).reshape(-1, *size)).view(g, -1, *size) - mean_i[:, None] * mean_p
    covariance = ii.permute(2, 3, 0, 1) + eps * torch.eye(g, device=p.device, dtype=torch.float64)
    a = torch.linalg.solve(covariance, ip.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
    b = mean_p - (a * mean_i[:, None]).sum(0)
    q = (mean(a.reshape(-1, *size)).view_as(a) * i[:, None]).sum(0) + mean(b)
    return torch.where(takes_part, q.to(torch.float32), p)


def box_mean(known: Tensor, radius_px: int) -> Callable[[Tensor], Tensor]:
    """Means over the known cells of the square window around each cell: known bool [h, w]; maps float64 [C, h, w].

    A window without known cells has the mean 0.
    """
    weight = known.double()
    count = _box_sum(weight[None], radius_px).clamp_min(1)
    return lambda x: _box_sum(x * weight, radius_px) / count


def _box_sum(x: Tensor, r: int) -> Tensor:
    """Sums over windows of 2r + 1 cells a side, clipped at the border: float64 [C, h, w] -> float64 [C, h, w]."""
    for dim in (1, 2):
        n = x.shape[dim]
        until = F.pad(x.cumsum(dim).movedim(dim, -1), (1, 0)).movedim(-1, dim)
        at = torch.arange(n, device=x.device)
        x = until.index_select(dim, (at + r + 1).clamp_max(n)) - until.index_select(dim, (at - r).clamp_min(0))
    return x
