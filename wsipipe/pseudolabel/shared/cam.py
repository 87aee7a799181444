"""The classifier of windows behind class activation maps (Zhou et al., CVPR 2016, eq. 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsipipe.nn.encoders import tokens
from wsipipe.pseudolabel.shared.feature_maps import feature_strides

MAX_STRIDE = 16
"""Largest stride of the feature map in input px, as in the paper: 14 x 14 cells for 224 px."""


class CamClassifier(nn.Module):
    """A backbone, global average pooling and a linear layer; pooling and linear layer commute."""

    def __init__(self, encoder: nn.Module, input_px: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.level = _level(encoder)
        encoder.eval()
        with torch.inference_mode():
            width = self.features(torch.zeros(1, 3, input_px, input_px)).shape[1]
        self.linear = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """f_k(x, y): windows (normalised) float [B, 3, s, s] -> float [B, D, h, w]."""
        return tokens(self.encoder, x, self.level).movedim(-1, 1)

    def maps(self, x: Tensor) -> Tensor:
        """M_c(x, y), eq. 2: windows (normalised) float [B, 3, s, s] -> float [B, K, h, w]."""
        return torch.einsum("ck,bkyx->bcyx", self.linear.weight, self.features(x))

    def evidence(self, maps: Tensor) -> Tensor:
        """S_c, eq. 1, with the bias: maps float [B, K, h, w] -> logits float [B, K]."""
        return maps.mean((2, 3)) + self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Windows (normalised) float [B, 3, s, s] -> logits float [B, K] of independent classes."""
        return self.evidence(self.maps(x))


def _level(encoder: nn.Module) -> int:
    """Index of the deepest feature map with a stride up to `MAX_STRIDE`, or of the last if all are coarser."""
    strides = feature_strides(encoder)
    return max((i for i, s in enumerate(strides) if s <= MAX_STRIDE), default=len(strides) - 1)
