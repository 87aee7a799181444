"""VGG16 at an output stride of 8: its sizes, its 16 suppressors, and the weights of timm's network in it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from wsipipe.pseudolabel.methods.drs.suppression import LEARNABLE, Suppression, Suppressor, suppress
from wsipipe.pseudolabel.methods.drs.vgg import (
    WIDTH,
    copy_convolutions,
    init_convolutions,
    map_head,
    pooled,
    vgg16_maps,
    vgg16_trunk,
)


@pytest.fixture
def network() -> nn.Sequential:
    """Shapes and counts alone: it has no values."""
    with torch.device("meta"):
        return vgg16_maps(4)


def test_an_image_of_320_gives_maps_of_40(network: nn.Sequential):
    assert network(torch.zeros(1, 3, 320, 320, device="meta")).shape == (1, 4, 40, 40)


def test_odd_maps_are_rounded_up(network: nn.Sequential):
    assert network(torch.zeros(1, 3, 97, 130, device="meta")).shape == (1, 4, 13, 17)


def test_the_score_of_a_class_is_the_mean_of_its_map():
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    assert pooled(maps).tolist() == [[5.5, 17.5]]


def test_sixteen_suppressors_follow_the_hidden_convolutions_and_none_the_last(network: nn.Sequential):
    with torch.device("meta"):
        layers = list(suppress(network, Suppression(LEARNABLE)).modules())
    class_pools = [type(m) for m in layers if isinstance(m, nn.Conv2d | Suppressor)]
    assert class_pools == [nn.Conv2d, Suppressor] * 16 + [nn.Conv2d]
    weights = [p for m in layers if isinstance(m, Suppressor) for p in m.parameters()]
    assert sum(p.numel() for p in weights) == 2_596_864


def test_fixed_suppression_adds_no_weight(network: nn.Sequential):
    plain = sum(p.numel() for p in network.parameters())
    fixed = suppress(network, Suppression())
    assert sum(p.numel() for p in fixed.parameters()) == plain
    assert sum(isinstance(m, Suppressor) for m in fixed.modules()) == 16


def test_the_layers_are_those_of_the_paper():
    trunk = vgg16_trunk()
    convolutions = [(m.out_channels, m.kernel_size, m.stride, m.dilation) for m in trunk if isinstance(m, nn.Conv2d)]
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert convolutions == [(w, (3, 3), (1, 1), (2, 2) if i > 9 else (1, 1)) for i, w in enumerate(widths)]
    pools = [(m.kernel_size, m.stride) for m in trunk if isinstance(m, nn.MaxPool2d)]
    assert pools == [(2, 2)] * 3 + [(3, 1)]
    head = [(m.in_channels, m.out_channels, m.kernel_size) for m in map_head(WIDTH, 5) if isinstance(m, nn.Conv2d)]
    assert head == [(512, 512, (3, 3))] * 3 + [(512, 5, (1, 1))]


def test_first_weights_keep_the_variance_or_are_as_asked():
    torch.manual_seed(0)
    head = map_head(128, 3)
    assert float(head[0].weight.detach().std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.03)
    assert not head[0].bias.any()
    assert float(init_convolutions(head, std=0.01)[0].weight.detach().std()) == pytest.approx(0.01, rel=0.03)


@torch.inference_mode()
def test_the_convolutions_of_timm_give_the_same_features():
    torch.manual_seed(0)
    with torch.device("meta"):  # its last layers alone would take half a gigabyte
        encoder = timm.create_model("vgg16", num_classes=0)
    for p in encoder.features.to_empty(device="cpu").parameters():
        nn.init.normal_(p, std=0.05)
    trunk = vgg16_trunk()
    assert copy_convolutions(trunk, encoder)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(trunk[:23](x), encoder.features[:23](x))  # up to the fourth pooling they are the same
    assert torch.equal(trunk[-2].weight, encoder.features[28].weight)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vgg16_bn", "densenet121"])
def test_of_another_encoder_nothing_is_taken(name: str):
    trunk = vgg16_trunk()
    before = trunk[0].weight.clone()
    with torch.device("meta"):
        encoder = timm.create_model(name, num_classes=0)
    assert not copy_convolutions(trunk, encoder)
    assert torch.equal(trunk[0].weight, before)
