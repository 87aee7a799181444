"""CAMEL's instance classifier, and the linear head that is also its selector on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Features float [B, D] -> logits float [B, K]: standardisation by fixed statistics, then a linear layer."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.linear = nn.Linear(width, classes)

    def standardise(self, features: Tensor) -> None:
        """Set the statistics to the mean and standard deviation of features float [N, D]."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of independent classes."""
        out: Tensor = self.linear((features - self.mean) / self.std)
        return out


class InstanceClassifier(nn.Module):
    """Crops (normalised) float [B, 3, s, s] -> logits float [B, K]; `shift` [K] moves the threshold of a class to 0."""

    shift: Tensor

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Head(width, classes)
        self.register_buffer("shift", torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of independent classes."""
        out: Tensor = self.head(self.encoder(x)) + self.shift
        return out
