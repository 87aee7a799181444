"""Encoders by timm name: from scratch, with a weights file, or from a model hub; and two narrow ResNets for CPUs.

`encoder(x)` gives one feature vector per image, `tokens(encoder, x)` a grid of features (the last map of a
convolutional network, the patch tokens of a vision transformer). Both take images as `normalise` makes them; an encoder
whose weights were trained with other channel statistics converts its input.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from wsipipe.errors import CheckpointError, ConfigError
from wsipipe.nn.checkpoint import fitting_weights, maker_of, weights_file

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Channel statistics (0..1) of `normalise`; fixed, so that a checkpoint never depends on its data."""

DEFAULT = "resnet18_half"
"""The default encoder."""

HUBS = ("hf-hub:", "local-dir:")
"""Prefixes of models that come with weights: from the Hugging Face hub, or from a folder with its layout."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of R, G, B (0..1) with which an encoder expects its input normalised."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


class _Restandardise:
    """A forward pre-hook: images normalised by `MEAN`, `STD` -> normalised by other statistics."""

    def __init__(self, own: Statistics) -> None:
        self.own = own

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        mean, std, own_mean, own_std = (
            torch.tensor(v, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
            for v in (MEAN, STD, self.own.mean, self.own.std)
        )
        return ((x * std + mean - own_mean) / own_std, *args[1:])


def _narrow(width: int, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a stem of three 3x3 convolutions and `width` channels in its first stage (64 in the original)."""
    channels = tuple(width * m for m in (1, 2, 4, 8))
    for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)  # no pretrained weights exist for these
    model: nn.Module = timm.create_model(
        "resnet18", channels=channels, stem_type="deep", stem_width=width // 2, **kwargs
    )
    return model


@register_model  # type: ignore[untyped-decorator]
def resnet18_half(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 of half width: 2.8 million weights, four times as fast as the full width on a CPU."""
    return _narrow(32, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet18_quarter(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 of quarter width, for tests and very small machines."""
    return _narrow(16, **kwargs)


def check_encoder(name: str) -> None:
    """ConfigError unless timm knows the encoder; hub models are checked when they are fetched."""
    if not name.startswith(HUBS) and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ConfigError(f"encoder {name!r} is not known to timm; similar: {', '.join(near) or 'none'}")


def create_encoder(name: str, weights: Path | None = None, statistics: Statistics | None = None) -> nn.Module:
    """An encoder from images float [B, 3, H, W] (of `normalise`) to features float [B, D].

    weights: a safetensors file, a state dict of torch, or a checkpoint of wsipipe (its folder or either file).
    statistics: with which the encoder expects its input normalised; default: those of its weights, else `MEAN`, `STD`.
    Vision transformers take images of any size. Raises ConfigError for an unknown name, CheckpointError for weights
    that cannot be fetched or do not fit.
    """
    check_encoder(name)
    model = _build(name)
    own = _published(model) if name.startswith(HUBS) else Statistics()
    if weights is not None:
        own = load_weights(model, weights)
    expect(model, statistics or own)
    return model


def expect(encoder: nn.Module, statistics: Statistics) -> None:
    """Make an encoder convert its input from `normalise` to the statistics that its weights expect."""
    if statistics != Statistics():
        encoder.register_forward_pre_hook(_Restandardise(statistics))


def _build(name: str) -> nn.Module:
    """The network without its classifier; weights of hub models are fetched."""
    options: dict[str, Any] = {"pretrained": name.startswith(HUBS), "num_classes": 0}
    try:
        model = _first_that_takes(name, options)
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # no network, no access, no such model
        raise CheckpointError(f"encoder {name}: cannot be fetched ({' '.join(str(error).split())})") from None
    if getattr(model, "global_pool", None) == "":  # some hub models return tokens, not a vector
        reset: Any = model.reset_classifier
        reset(0, "token" if getattr(model, "num_prefix_tokens", 0) else "avg")
    return model


def _first_that_takes(name: str, options: dict[str, Any]) -> nn.Module:
    """The model, made with whichever option for images of any size its class accepts; convolutions need none."""
    for any_size in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}):
        try:
            model: nn.Module = timm.create_model(name, **any_size, **options)
            return model
        except TypeError:  # not an option of this class
            continue
    return timm.create_model(name, **options)  # type: ignore[no-any-return]


def width_of(encoder: nn.Module, input_px: int) -> int:
    """Length D of an encoder's features; leaves the encoder in evaluation mode."""
    encoder.eval()
    with torch.inference_mode():
        return int(encoder(torch.zeros(1, 3, input_px, input_px)).shape[1])


def statistics_of(encoder: nn.Module) -> Statistics:
    """The channel statistics that an encoder of `create_encoder` expects; checkpoints record them."""
    hooks = encoder._forward_pre_hooks.values()
    return next((h.own for h in hooks if isinstance(h, _Restandardise)), Statistics())


def tokens(encoder: nn.Module, x: Tensor, level: int = -1) -> Tensor:
    """Grid of features float [B, h, w, D] of images float [B, 3, H, W]: a feature map, or patch tokens.

    level: index of the encoder's maps from the finest; default: the last. Class and register tokens are left out; the
    final normalisation layer is applied. ConfigError for an encoder without such a grid.
    """
    own = statistics_of(encoder)
    if own != Statistics():
        (x,) = _Restandardise(own)(encoder, (x,))
    if not hasattr(encoder, "forward_intermediates"):
        raise ConfigError(f"encoder {type(encoder).__name__} gives no grid of features; choose another")
    forward: Any = encoder.forward_intermediates
    (grid,) = forward(x, indices=[level], norm=True, stop_early=True, output_fmt="NCHW", intermediates_only=True)
    return torch.as_tensor(grid).movedim(1, -1)


def chosen_encoder(encoder: str, weights: str) -> tuple[str, Path | None]:
    """Name of the encoder and path of its weights; an empty one follows from the other.

    A checkpoint of wsipipe names its encoder: CheckpointError if another is asked for.
    """
    if not weights:
        return encoder or DEFAULT, None
    path = Path(weights)
    own = maker_of(path)
    if own is None:
        return encoder or DEFAULT, path
    if encoder and encoder != own.encoder:
        raise CheckpointError(
            f"{path}: weights of encoder {own.encoder!r}, but --encoder is {encoder!r}; leave --encoder out"
        )
    return own.encoder, path


def load_weights(model: nn.Module, path: Path) -> Statistics:
    """Load weights into `model`; returns the channel statistics that they expect.

    A classification head in the file is ignored; no other weight may be missing. Names may share a prefix, such as
    `encoder.`, `module.` or `teacher.backbone.`.
    """
    model.load_state_dict(fitting_weights(path, model.state_dict()), strict=False)
    return _statistics_of(path, model)


def _published(model: nn.Module) -> Statistics:
    """The statistics that timm has for a model."""
    config = timm.data.resolve_model_data_config(model)
    return Statistics(tuple(config["mean"]), tuple(config["std"]))


def _statistics_of(weights: Path, model: nn.Module) -> Statistics:
    """Statistics of a weights file: from its checkpoint, from a hub's `config.json` beside it, or from timm."""
    if own := maker_of(weights):
        return Statistics(own.mean, own.std)
    try:
        config = json.loads((weights_file(weights).parent / "config.json").read_text())["pretrained_cfg"]
        return Statistics(tuple(map(float, config["mean"])), tuple(map(float, config["std"])))
    except (OSError, KeyError, TypeError, ValueError):
        return _published(model)


def normalise(rgb: Tensor) -> Tensor:
    """uint8 or float 0..1 [B, 3, H, W] -> float32 normalised by `MEAN` and `STD`, channels last in memory."""
    x = rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)
