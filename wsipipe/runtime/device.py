"""Device and precision of the networks; no other module chooses them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsipipe.errors import ConfigError
from wsipipe.runtime.progress import Progress, silent

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ComputeContext:
    """Device, seed and progress callback of code that computes."""

    device: torch.device
    seed: int = 0
    progress: Progress = silent


def device(spec: str = "auto") -> torch.device:
    """The torch device of `spec`: `auto` (a GPU if there is one), `cpu` or `cuda:N`. Raises ConfigError otherwise."""
    import torch

    if spec == "auto" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if spec == "auto":
        return torch.device("cpu")
    try:
        chosen = torch.device(spec)
    except RuntimeError:
        raise ConfigError(f"device {spec!r}: expected auto, cpu or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {spec!r}: expected auto, cpu or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {spec}: {torch.cuda.device_count()} CUDA devices found; use --device auto")
    return chosen


def compiled(model: torch.nn.Module, on: torch.device) -> None:
    """Compile the forward pass on a GPU, in place; the weights and their names do not change."""
    if on.type == "cuda":
        model.compile(mode="default")


def autocast(on: torch.device) -> AbstractContextManager[None]:
    """bfloat16 on GPUs that support it, float32 elsewhere, so that results agree between CPUs."""
    import torch

    return torch.autocast(on.type, torch.bfloat16, enabled=on.type == "cuda" and torch.cuda.is_bf16_supported())
