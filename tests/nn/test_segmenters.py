"""Segmentation networks by name: logits as large as the image, on any encoder, started from the encoder's weights."""

from __future__ import annotations

import pytest
import torch

from wsipipe.errors import ConfigError
from wsipipe.nn.encoders import create_encoder
from wsipipe.nn.segmenters import create_segmenter, encoder_of


@pytest.mark.parametrize("architecture", ["unet", "fpn", "deeplabv3plus"])
def test_logits_have_one_channel_a_class_at_the_size_of_the_image(architecture: str) -> None:
    model = create_segmenter(architecture, "resnet18_quarter", 3).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 3, 64, 96)


@pytest.mark.parametrize("architecture", ["unet", "fpn", "deeplabv3plus"])
def test_an_encoder_trained_alone_fits_into_the_network(architecture: str) -> None:
    alone = create_encoder("resnet18_quarter")
    inside = encoder_of(create_segmenter(architecture, "resnet18_quarter", 2))
    assert not torch.equal(inside.state_dict()["conv1.0.weight"], alone.state_dict()["conv1.0.weight"])
    inside.load_state_dict(alone.state_dict())
    assert torch.equal(inside.state_dict()["conv1.0.weight"], alone.state_dict()["conv1.0.weight"])


def test_the_decoder_is_as_narrow_as_its_encoder() -> None:
    def decoder_size(encoder: str) -> int:
        return sum(p.numel() for p in create_segmenter("unet", encoder, 2).decoder.parameters())

    assert decoder_size("resnet18_quarter") * 8 < decoder_size("resnet10t")


def test_an_unknown_architecture_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"architecture 'u-net' is not known; choose one of .*fpn.*unet"):
        create_segmenter("u-net", "resnet18_quarter", 2)


def test_an_unknown_encoder_is_named_before_the_network_is_built() -> None:
    with pytest.raises(ConfigError, match="encoder 'resnet18_hal' is not known"):
        create_segmenter("unet", "resnet18_hal", 2)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("unet", "vit_tiny_patch16_224"), ("fpn", "vit_tiny_patch16_224"), ("deeplabv3", "swin_tiny_patch4_window7_224")],
)
def test_an_architecture_that_does_not_go_with_the_encoder_says_so(architecture: str, encoder: str) -> None:
    with pytest.raises(ConfigError, match=f"{architecture} cannot be built on encoder {encoder}: "):
        create_segmenter(architecture, encoder, 2)
