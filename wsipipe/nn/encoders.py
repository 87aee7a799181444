"""Encoders by timm name, from scratch or with a local weights file; and two narrow ResNets made for CPUs."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import register_model
from torch import Tensor, nn

from wsipipe.errors import CheckpointError, ConfigError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Channel statistics (0..1) that timm's weights expect; fixed, so that a checkpoint never depends on its data."""


def _narrow(width: int, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a stem of three 3x3 convolutions and `width` channels in its first stage (64 in the original)."""
    channels = tuple(width * m for m in (1, 2, 4, 8))
    for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)  # there are no weights of these to be fetched
    model: nn.Module = timm.create_model(
        "resnet18", channels=channels, stem_type="deep", stem_width=width // 2, **kwargs
    )
    return model


@register_model  # type: ignore[untyped-decorator]
def resnet18_half(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 of half width: 2.8 million weights, four times as fast as the whole on a CPU."""
    return _narrow(32, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet18_quarter(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 of quarter width, for tests and very small machines."""
    return _narrow(16, **kwargs)


def check_encoder(name: str) -> None:
    """ConfigError unless timm knows the encoder."""
    if not timm.is_model(name.removeprefix("hf-hub:")) and not name.startswith("hf-hub:"):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ConfigError(f"encoder {name!r} is not known to timm; similar: {', '.join(near) or 'none'}")


def create_encoder(name: str, weights: Path | None = None) -> nn.Module:
    """An encoder from images float [B, 3, H, W] (normalised) to features float [B, D].

    Raises ConfigError for an unknown name, CheckpointError for weights that cannot be fetched or do not fit.
    """
    check_encoder(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=name.startswith("hf-hub:"), num_classes=0)
    except OSError as error:  # no network, no access, no such repository
        raise CheckpointError(f"encoder {name}: cannot be fetched ({' '.join(str(error).split())})") from None
    if weights is not None:
        load_weights(model, weights)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into `model`; a classification head in the file is ignored, nothing else may differ."""
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such weights file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); convert it first") from None
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state]
    shapes = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or shapes:
        raise CheckpointError(
            f"{path}: does not fit this encoder ({len(missing)} weights missing, {len(shapes)} of another shape, "
            f"first: {(missing + shapes)[0]}); check --encoder"
        )
    model.load_state_dict({k: state[k] for k in wanted})


def normalise(rgb: Tensor) -> Tensor:
    """uint8 or float 0..1 [B, 3, H, W] -> float32 with `MEAN` and `STD` taken out, channels last in memory."""
    x = rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)
