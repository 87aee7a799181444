"""X1.7, the shallow network of HistoSegNet: seven convolutions in three blocks, a global maximum, one linear layer.

Chan et al., ICCV 2019, by the description of the released network: every layer is a convolution, a ReLU and a batch
norm, in this order, with dropout between the layers of a block. With 51 classes and width 64 it has 1,753,203
parameters (running statistics counted, as Keras does), of which 1,750,899 are trained.

Grad-CAM is taken at A, the output of the last ReLU before its batch norm: 256 maps of 56 x 56 for 224 x 224 px. After
it, with BN(A)_k = gamma_k (A_k - mean_k) / sqrt(var_k + eps) + beta_k,

    z_c = b_c + sum_k W_ck max_xy BN(A)_k(x, y),

every A_k has a gradient at one position, which is W_ck gamma_k / sqrt(var_k + eps) for all images: see `cam_weights`.

Deviations: images come normalised by `normalise` and are converted to the published statistics here; the pooling of the
last block is left out, since the global maximum after it takes the same values; weight decay is the optimiser's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wsipipe.nn.encoders import MEAN, STD

GREY_MEAN, GREY_STD = 193.09203, 56.450138
"""Grey levels 0..255 of the published training set, used to normalise every channel."""

BLOCKS = ((1, (0.3,)), (2, (0.4,)), (4, (0.4, 0.4)))
"""Per block: channels in multiples of the width, and the dropout between its layers."""

MOMENTUM = 0.01
"""Momentum of the running statistics; 0.99 in Keras."""


class X17(nn.Module):
    """Images (normalised) float [B, 3, H, W] -> logits float [B, K] of independent classes.

    width: channels of the first block, 64 as published; the second has twice, the third four times as many. H and W
    must be multiples of 4.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for times, dropouts in BLOCKS:
            for dropout in (*dropouts, None):
                layers += [nn.Conv2d(channels, times * width, 3, padding=1), nn.ReLU()]
                channels = times * width
                layers += [_norm(channels), nn.MaxPool2d(2) if dropout is None else nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers[:-2])
        self.norm = _norm(channels)
        self.linear = nn.Linear(channels, classes)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        self.register_buffer("scale", std * 255 / GREY_STD, persistent=False)
        self.register_buffer("offset", (mean * 255 - GREY_MEAN) / GREY_STD, persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """A, the output of the last ReLU: images float [B, 3, H, W] -> float [B, 4 width, H / 4, W / 4] >= 0."""
        out: Tensor = self.layers(x * self.scale + self.offset)
        return out

    def scores(self, activations: Tensor) -> Tensor:
        """Logits of A: float [B, D, h, w] -> float [B, K]."""
        out: Tensor = self.linear(self.norm(activations).amax((2, 3)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """The scores of the features."""
        return self.scores(self.features(x))

    @torch.no_grad()
    def settle(self, batches: Iterable[Tensor]) -> None:
        """Set the batch norms to the mean statistics of batches float [B, 3, H, W], and go into evaluation mode.

        Running statistics with the momentum of Keras take hundreds of steps: after a short training they are still half
        those of the untrained network.
        """
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        self.eval()  # without dropout
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # the mean over batches
        for batch in batches:
            self(batch)
        for norm in norms:
            norm.eval().momentum = MOMENTUM

    def cam_weights(self) -> Tensor:
        """Grad-CAM weights in evaluation mode, the same for all images, times the places of the map: float [K, D]."""
        variance = self.norm.running_var
        assert variance is not None
        return self.linear.weight * self.norm.weight / torch.sqrt(variance + self.norm.eps)


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the constants of the published network."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=MOMENTUM)
