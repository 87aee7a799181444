"""Gaussian blur of maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blurred(maps: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur, cut off at 4 sigma, with replicated edges: float [B, h, w] -> the same; sigma 0: unchanged."""
    radius = int(4 * sigma_px + 0.5)
    if radius == 0:
        return maps
    at = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (at / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    out = F.conv2d(F.pad(maps.unsqueeze(1), (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    out = F.conv2d(F.pad(out, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return out.squeeze(1)
