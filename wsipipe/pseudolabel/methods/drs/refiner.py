"""Step 4, the refinement network: it regresses class maps from the image, which smooths and completes them.

Kim, Han, Kim, AAAI 2021 (the second stage of DRS). The targets come from the maps M of a classifier,

    T_c(x, y) = M_c(x, y) where M_c is the highest at (x, y), else 0,

and the loss is the mean of (f_c(x, y) - T_c(x, y))^2 over pixels and all channels, absent ones included as zeros. The
network f has no output activation: its values may be negative or exceed 1.

Deviations: each step has as many windows of each class, by the class that covers most of a window, as windows without
any (published: uniform, but there every image shows a class; where few windows do, the network learns low values
everywhere); the augmentation is the eight symmetries with stain jitter (published: flips, and colour jitter of natural
images); optimiser and schedule are the package's; targets are stored in 8 bits, as published, but at the size of the
maps, and resized for each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.geometry import ceil_div
from wsipipe.nn.augment import STAIN_STRENGTH, TissueAugment
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, fit, generator
from wsipipe.pseudolabel.shared.resize import resize
from wsipipe.pseudolabel.shared.sampling import balanced_sample
from wsipipe.runtime.device import ComputeContext


@dataclass(frozen=True)
class RefinerTraining:
    """How a refinement network is trained; stain_jitter: strength of the stain jitter, 0: none."""

    steps: int
    lr: float
    batch: int = 16
    stain_jitter: float = STAIN_STRENGTH


def keep_argmax(maps: Tensor) -> Tensor:
    """T: float [B, C, h, w] -> the same shape, 0 in all but the first highest channel of each position."""
    value, channel = maps.max(1, keepdim=True)
    return torch.zeros_like(maps).scatter_(1, channel, value)


def to_bytes(maps: Tensor) -> NDArray[np.uint8]:
    """Maps float 0..1 in 8 bits: 255 = 1.0."""
    stored: NDArray[np.uint8] = (maps.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return stored


def window_pools(maps: NDArray[np.uint8], has_background: bool) -> list[Tensor]:
    """Windows to draw from in equal numbers, int64 [n] each, none empty: those of each class, and the others.

    maps: uint8 [M, C, h, w]. has_background: whether channel 0 is the background. A window belongs to the class that is
    highest in most of its cells.
    """
    classes = maps[:, int(has_background) :]
    value, kind = classes.max(1), classes.argmax(1)
    shown = (value > maps[:, 0]) if has_background else value > 0
    cells = np.stack([(shown & (kind == c)).sum((1, 2)) for c in range(classes.shape[1])], 1)
    of = np.where(cells.any(1), cells.argmax(1), classes.shape[1])
    return [torch.from_numpy(np.flatnonzero(of == c)) for c in np.unique(of)]


def train_refiner(
    model: nn.Module,
    rgb: NDArray[np.uint8],
    maps: NDArray[np.uint8],
    training: RefinerTraining,
    compute: ComputeContext,
    has_background: bool = False,
) -> list[float]:
    """Train `model` to regress maps, uint8 [M, C, h, w] (255 = 1.0), from windows, uint8 [M, 3, s, s].

    model: windows (normalised) float [B, 3, s, s] -> float [B, C, h', w'], resized to s for the loss. has_background:
    whether channel 0 is the background. Returns the loss of every step.
    """
    side, pools = (rgb.shape[-1],) * 2, window_pools(maps, has_background)
    augment = TissueAugment(training.stain_jitter)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        g = generator(compute.seed, 5, step)
        rows = balanced_sample(pools, ceil_div(training.batch, len(pools)), g).numpy()
        x, y = (torch.from_numpy(values[rows]).float() / 255 for values in (rgb, maps))
        return augment.with_maps(x, y, g)

    def loss(item: tuple[Tensor, Tensor]) -> Tensor:
        x, stored = (t.to(compute.device) for t in item)
        target = keep_argmax(resize(stored, side))
        return F.mse_loss(resize(model(normalise(x)).float(), side), target)

    return fit(model, draw, loss, Schedule(training.steps, training.lr), "refine", compute)
