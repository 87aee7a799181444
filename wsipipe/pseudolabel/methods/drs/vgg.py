"""VGG16 as the localisation network of DRS: its convolutions at an output stride of 8, and a head of class maps.

Simonyan, Zisserman, ICLR 2015 (configuration D), as Kim, Han, Kim, AAAI 2021 use it: the first three poolings halve
the map, the fourth (3x3) keeps its size, the fifth is left out, and the last three convolutions are dilated by 2; then
three 3x3 convolutions of 512 channels, and one of 1x1 to the classes, whose score is the mean of their map. `suppress`
turns its sixteen ReLUs into the paper's classification network with suppression.

Deviation: maps of odd size are pooled with rounding up, so that there are ceil(H / 8) rows.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of the five blocks."""

WIDTH = WIDTHS[-1][0]
"""Channels of the trunk's output."""


def vgg16_trunk() -> nn.Sequential:
    """The 13 convolutions: images float [B, 3, H, W] -> features float [B, 512, ceil(H / 8), ceil(W / 8)]."""
    layers: list[nn.Module] = []
    before = 3
    for block, (width, count) in enumerate(WIDTHS):
        dilation = 2 if block == 4 else 1
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
            before = width
        if block < 3:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        elif block == 3:
            layers.append(nn.MaxPool2d(3, 1, padding=1))
    return init_convolutions(nn.Sequential(*layers))


def map_head(width: int, classes: int) -> nn.Sequential:
    """Three 3x3 convolutions and one of 1x1: features float [B, width, h, w] -> maps float [B, classes, h, w]."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return init_convolutions(nn.Sequential(*layers, nn.Conv2d(width, classes, 1)))


def vgg16_maps(classes: int) -> nn.Sequential:
    """Trunk and head: images float [B, 3, H, W] -> maps float [B, classes, ceil(H / 8), ceil(W / 8)]."""
    return nn.Sequential(vgg16_trunk(), map_head(WIDTH, classes))


def init_convolutions(layers: M, std: float = 0.0) -> M:
    """Initialise convolutions by He et al. 2015, or by N(0, std^2) if `std` is above 0; biases with 0. Returns them."""
    for m in layers.modules():
        if isinstance(m, nn.Conv2d):
            if std:
                nn.init.normal_(m.weight, std=std)
            else:
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            assert m.bias is not None
            nn.init.zeros_(m.bias)
    return layers


def copy_convolutions(trunk: nn.Sequential, encoder: nn.Module) -> bool:
    """Copy the convolutions of timm's `vgg16` into a trunk; any other encoder: False, and nothing is copied."""
    features = getattr(encoder, "features", None)
    if not isinstance(features, nn.Sequential):
        return False
    own, others = _convolutions(trunk), _convolutions(features)
    plain = all(isinstance(m, nn.Conv2d | nn.ReLU | nn.MaxPool2d) for m in features)
    if not plain or [m.weight.shape for m in own] != [m.weight.shape for m in others]:
        return False
    with torch.no_grad():
        for m, other in zip(own, others, strict=True):
            m.load_state_dict(other.state_dict())
    return True


def _convolutions(layers: nn.Sequential) -> list[nn.Conv2d]:
    return [m for m in layers if isinstance(m, nn.Conv2d)]


def pooled(maps: Tensor) -> Tensor:
    """Global average pooling: maps float [B, K, h, w] -> scores (logits) float [B, K]."""
    return maps.mean((2, 3))
