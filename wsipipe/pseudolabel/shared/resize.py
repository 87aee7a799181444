"""Bilinear resizing of maps and images, with cells as areas (corners are not aligned)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    """Float [B, C, h, w] -> [B, C, *size]; where sizes shrink, `antialias` averages over the source cells."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)
