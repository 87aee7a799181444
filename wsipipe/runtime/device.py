"""Device and precision: the only place that chooses where to compute."""

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
    """Where to compute, from which seed, and who is told how far it has come."""

    device: torch.device
    seed: int = 0
    progress: Progress = silent


def device(spec: str = "auto") -> torch.device:
    """The torch device of `spec`: `auto` (a GPU if there is one), `cpu` or `cuda:N`."""
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
    """Let torch compile the forward pass where that pays, on a GPU; weights and their names stay as they are."""
    if on.type == "cuda":
        model.compile(mode="default")


def autocast(on: torch.device) -> AbstractContextManager[None]:
    """bfloat16 arithmetic on GPUs that have it, float32 elsewhere: any CPU gives the answers of every other."""
    import torch

    return torch.autocast(on.type, torch.bfloat16, enabled=on.type == "cuda" and torch.cuda.is_bf16_supported())
