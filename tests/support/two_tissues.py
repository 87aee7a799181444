"""Two tissues side by side with noisy evidence for one of them, for the tests of refinements."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def everywhere(h: int, w: int) -> Tensor:
    return torch.ones(h, w, dtype=torch.bool)


def halves(h: int, w: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pink tissue and, right of a slanting line, purple, with grain: uint8 [3, h, w]; where it is purple, [h, w]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    purple = x + y // 4 > w // 2
    rgb = np.where(purple, 160, 215) + np.array([0, -55, -20])[:, None, None] + 8 * rng.standard_normal((h, w))
    return torch.from_numpy(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)), torch.from_numpy(purple)


def noisy_evidence(purple: Tensor, seed: int = 0) -> Tensor:
    """Evidence for the background, purple and an absent class, coarse and noisy: float32 [3, h, w]."""
    h, w = purple.shape
    rng = torch.Generator().manual_seed(seed)
    coarse = F.avg_pool2d(purple[None].float(), 6, ceil_mode=True)
    coarse = (0.2 + 0.6 * coarse + 0.2 * torch.randn(coarse.shape, generator=rng)).clamp(0.01, 0.99)
    p = F.interpolate(coarse[None], scale_factor=6, mode="bilinear")[0, 0, :h, :w]
    return torch.stack([1 - p, p, torch.zeros(h, w)])


def wrong(evidence: Tensor, purple: Tensor) -> float:
    return float(((evidence.argmax(0) == 1) != purple).float().mean())
