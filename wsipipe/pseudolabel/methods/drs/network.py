"""The networks of DRS: a trunk of an encoder or VGG16, and a head that gives maps of the classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsipipe.nn.encoders import expect, statistics_of, tokens
from wsipipe.pseudolabel.methods.drs.params import Params
from wsipipe.pseudolabel.methods.drs.vgg import WIDTH, copy_convolutions, map_head, vgg16_trunk
from wsipipe.pseudolabel.shared.feature_maps import feature_strides


class EncoderTrunk(nn.Module):
    """The feature map of an encoder whose stride is nearest to `stride`: images [B, 3, H, W] -> [B, D, h, w]."""

    def __init__(self, encoder: nn.Module, stride: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.level = feature_level(encoder, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features of normalised images."""
        return tokens(self.encoder, x, self.level).movedim(-1, 1)


def feature_level(encoder: nn.Module, stride: int) -> int:
    """Index of the encoder's feature map with the nearest stride, in octaves; of equally near ones the deepest."""
    strides = feature_strides(encoder)
    return min(range(len(strides)), key=lambda i: (abs(math.log2(strides[i] / stride)), -i))


def map_network(encoder: nn.Module, channels: int, params: Params) -> nn.Sequential:
    """Trunk and head: normalised images [B, 3, H, W] -> maps [B, channels, h, w]."""
    if params.network == "encoder":
        trunk = EncoderTrunk(encoder, params.stride)
        with torch.inference_mode():
            width = trunk.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        return nn.Sequential(trunk, map_head(width, channels))
    vgg = vgg16_trunk()
    if copy_convolutions(vgg, encoder):
        expect(vgg, statistics_of(encoder))
    return nn.Sequential(vgg, map_head(WIDTH, channels))


def copy_weights(refiner: nn.Module, classifier: nn.Module) -> None:
    """Copy the weights of a classifier into a refinement network, except those of the last layer."""
    *_, last = (name for name, m in refiner.named_modules() if isinstance(m, nn.Conv2d))
    own = refiner.state_dict()
    for name, values in classifier.state_dict().items():
        if name in own and not name.startswith(f"{last}."):
            own[name].copy_(values)
