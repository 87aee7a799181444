"""Segmentation networks by segmentation-models-pytorch name; the only user of that library."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

from wsipipe.errors import ConfigError
from wsipipe.nn.encoders import check_encoder

_FULL_WIDTH = (256, 128, 64, 32, 16)
_TAKES_CHANNELS = ("unet", "unetplusplus", "manet")


def create_segmenter(architecture: str, encoder: str, classes: int) -> nn.Module:
    """A network from images float [B, 3, H, W] (normalised, H and W multiples of 32) to logits [B, classes, H, W].

    The decoder of U-Net-like architectures is narrowed in proportion to its encoder (full width: 512 channels).
    """
    known = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if architecture not in known:
        raise ConfigError(f"architecture {architecture!r} is not known; choose one of {', '.join(known)}")
    check_encoder(encoder)
    options: dict[str, Any] = {}
    try:
        if architecture in _TAKES_CHANNELS:
            widest = smp.encoders.get_encoder(f"tu-{encoder}", weights=None).out_channels[-1]
            options["decoder_channels"] = [max(8, min(c, c * widest // 512)) for c in _FULL_WIDTH]
        model: nn.Module = smp.create_model(
            architecture, f"tu-{encoder}", encoder_weights=None, classes=classes, **options
        )
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(f"{architecture} cannot be built on encoder {encoder}: {error}") from None
    return model


def encoder_of(model: nn.Module) -> nn.Module:
    """The timm encoder inside a network, for loading pretrained weights."""
    return model.encoder.model  # type: ignore[union-attr,return-value]
