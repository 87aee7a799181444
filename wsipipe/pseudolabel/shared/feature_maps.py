"""The intermediate feature maps of a timm encoder."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from wsipipe.errors import ConfigError


def feature_strides(encoder: nn.Module) -> list[int]:
    """Strides of the encoder's feature maps in input px, finest first; ConfigError if it gives none."""
    strides = [int(level["reduction"]) for level in cast(Any, getattr(encoder, "feature_info", None) or ())]
    if not strides or not hasattr(encoder, "forward_intermediates"):
        raise ConfigError(f"encoder {type(encoder).__name__} gives no feature maps; choose another --encoder")
    return strides
