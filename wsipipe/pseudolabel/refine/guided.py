"""Refinement by the guided filter: evidence is smoothed, but not across the edges of the tissue.

The filter is that of He, Sun and Tang, IEEE TPAMI 35, 2013: maps smoothed along the edges of a picture.

In a square window w_k the filtered map is taken to be linear in the guide I, q_i = a_k^T I_i + b_k, with

    a_k = (S_k + eps U)^-1 (mean_k(I p) - mean_k(I) mean_k(p))     (eq. 5, in its form for a colour guide)
    b_k = mean_k(p) - a_k^T mean_k(I)                              (eq. 6)
    q_i = mean_i(a)^T I_i + mean_i(b)                              (eq. 8)

S_k is the covariance of the guide in the window, U the identity. All means are box means by running sums, so that the
cost does not depend on the radius.

Deviations: means are over the known cells of a window alone (at the border of the map, over those inside), both in a, b
and in q, so that an unknown cell has no influence; sums are in float64, which the differences of running sums need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.errors import check


@dataclass(frozen=True)
class Params:
    """Parameters of the guided filter."""

    radius_um: float = option(32.0, "half a side (um) of the windows; one cell at the least")
    eps: float = option(0.001, "variance of colour, on a scale of 0..1, up to which a window counts as flat")
    grey: bool = option(False, "guide by brightness alone: less is followed, in a third of the time")

    def __post_init__(self) -> None:
        for name in ("radius_um", "eps"):
            check(getattr(self, name) > 0, f"guided.{name}: {getattr(self, name)} is not above 0")


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Evidence float32 [C, h, w] guided by rgb uint8 [3, h, w], held inside the range 0..1; known bool [h, w].

    Cells that are not known take no part and come back as they were.
    """
    guide = rgb.float() / 255
    if params.grey:
        guide = guide.mean(0, keepdim=True)
    radius = max(1, round(params.radius_um / cell_um))
    q = guided_filter(evidence, guide, radius, params.eps, known).clamp(0, 1)
    return torch.where(known, q, evidence)


def guided_filter(p: Tensor, guide: Tensor, radius_px: int, eps: float, known: Tensor | None = None) -> Tensor:
    """q: float32 [C, h, w], the maps p float [C, h, w] smoothed in windows of 2 radius_px + 1 cells a side.

    guide: float [G, h, w], 0..1, grey (G = 1) or colour; eps: variance of the guide (in its units, squared) up to which
    it counts as flat; known: bool [h, w], None for all. Cells that are not known come back as they were. Values may
    leave the range of p a little beside strong edges.
    """
    check(radius_px >= 1, f"guided radius: {radius_px} cells is below 1")
    check(eps > 0, f"guided eps: {eps} is not above 0; it keeps flat windows solvable")
    if guide.shape[1:] != p.shape[1:]:
        raise ValueError(f"guide of shape {tuple(guide.shape)} for maps of shape {tuple(p.shape)}")
    sees = torch.ones_like(p[0], dtype=torch.bool) if known is None else known
    mean = box_mean(sees, radius_px)
    values = torch.where(sees, p, 0).double()
    i = guide.double()
    g, size = len(i), p.shape[1:]
    mean_i, mean_p = mean(i), mean(values)
    ii = mean((i[:, None] * i).reshape(g * g, *size)).view(g, g, *size) - mean_i[:, None] * mean_i
    ip = mean((i[:, None] * values).reshape(-1, *size)).view(g, -1, *size) - mean_i[:, None] * mean_p
    covariance = ii.permute(2, 3, 0, 1) + eps * torch.eye(g, device=p.device, dtype=torch.float64)
    a = torch.linalg.solve(covariance, ip.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
    b = mean_p - (a * mean_i[:, None]).sum(0)
    q = (mean(a.reshape(-1, *size)).view_as(a) * i[:, None]).sum(0) + mean(b)
    return torch.where(sees, q.to(torch.float32), p)


def box_mean(known: Tensor, radius_px: int) -> Callable[[Tensor], Tensor]:
    """Means over the known cells of the square window around each cell: known bool [h, w]; maps float64 [C, h, w].

    A window without a known cell has mean 0.
    """
    sees = known.double()
    count = _box_sum(sees[None], radius_px).clamp_min(1)
    return lambda x: _box_sum(x * sees, radius_px) / count


def _box_sum(x: Tensor, r: int) -> Tensor:
    """Sums over windows of 2r + 1 cells a side, clipped at the border: float64 [C, h, w] -> float64 [C, h, w]."""
    for dim in (1, 2):
        n = x.shape[dim]
        until = F.pad(x.cumsum(dim).movedim(dim, -1), (1, 0)).movedim(-1, dim)
        at = torch.arange(n, device=x.device)
        x = until.index_select(dim, (at + r + 1).clamp_max(n)) - until.index_select(dim, (at - r).clamp_min(0))
    return x
