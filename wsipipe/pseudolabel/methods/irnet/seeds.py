"""Step 2, seeds: confident cells of class maps, as labels to learn boundaries from.

A seed map is uint8: 0 background, k + 1 class k, 255 unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsipipe.labels import IGNORE
from wsipipe.pseudolabel.shared.crf import Kernels, mean_field, unary_of_labels

CRF = Kernels(gauss_px=3, gauss_weight=3, bilateral_px=50, bilateral_rgb=5, bilateral_weight=10)
CONFIDENCE, ITERATIONS = 0.7, 10
"""The published refinement of seeds."""


def tissue_seeds(maps: Tensor, tissue: Tensor, fg: float, bg: float) -> Tensor:
    """Seeds by the tissue mask: maps float 0..1 [B, K, h, w], tissue bool [B, h, w] -> uint8 [B, h, w].

    Glass is 0. Tissue is its highest class where that is at least `fg`, and K + 1 (other tissue) where every class is
    below `bg`.
    """
    top, kind = maps.max(1)
    seeds = torch.full_like(kind, IGNORE)
    seeds[top < bg] = maps.shape[1] + 1
    seeds = torch.where(top >= fg, kind + 1, seeds)
    return torch.where(tissue, seeds, 0).to(torch.uint8)


def published_seeds(maps: Tensor, rgb: Tensor, fg: float, bg: float) -> Tensor:
    """Seeds by two thresholds and a CRF: maps float 0..1 [K, h, w] (0: absent), rgb uint8 [3, h, w] -> uint8 [h, w]."""
    return seed_rule(*(_at_threshold(maps, rgb, t) for t in (fg, bg)))


def seed_rule(fg: Tensor, bg: Tensor) -> Tensor:
    """The labels by the strict threshold where they are a class, 0 where both are 0, else 255; integers -> uint8."""
    other = torch.where(bg == 0, 0, IGNORE)
    return torch.where(fg != 0, fg, other).to(torch.uint8)


def _at_threshold(maps: Tensor, rgb: Tensor, threshold: float) -> Tensor:
    """Argmax over a constant background and the maps, refined by a CRF among the background and the present classes."""
    present = [k for k in range(len(maps)) if maps[k].max() > 0]
    if not present:
        return torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    among = torch.cat([torch.full_like(maps[:1], threshold), maps[present]])
    unary = unary_of_labels(among.argmax(0), len(among), CONFIDENCE)
    refined = mean_field(unary, rgb, CRF, ITERATIONS).argmax(0)
    return torch.tensor([0, *(k + 1 for k in present)], device=maps.device)[refined]
