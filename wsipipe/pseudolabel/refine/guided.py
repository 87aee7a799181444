"""Refinement by the guided filter of `parts.guided`: evidence smoothed, but not across the edges of the tissue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsipipe.config import check, option
from wsipipe.pseudolabel.parts.guided import guided_filter


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
