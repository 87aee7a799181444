"""A refinement network: it regresses the maps of classes from the image, which smooths and completes them.

Kim, Han, Kim, AAAI 2021 (the second stage of DRS). For every image the maps M of a classifier are the target, of which

    T_c(x, y) = M_c(x, y) where M_c is the highest at (x, y), else 0,

and the loss is the mean of (f_c(x, y) - T_c(x, y))^2 over all channels, absent ones included as zeros, and pixels. The
network f has no output activation: its values may be negative or exceed 1.

Deviations: a step holds as many windows of each class, by what they show most of, as windows that show none (published:
drawn alike, but there every image shows a class; where few windows do, the network learns to give little everywhere);
the views of training are the eight symmetries with stain jitter (published: flips, and colour jitter of
natural images); optimiser and schedule are the package's; targets are stored in 8 bits, as published, but at the size
of the maps, and enlarged for each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.nn.augment import STAIN_STRENGTH, TissueAugment
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, fit, generator
from wsipipe.pseudolabel.shared.mil import balanced_sample
from wsipipe.runtime.device import ComputeContext


@dataclass(frozen=True)
class RefinerTraining:
    """How a refinement network is trained: `stain` is the strength of the stain jitter, 0 for none."""

    steps: int
    lr: float
    batch: int = 16
    stain_jitter: float = STAIN_STRENGTH


def strongest_only(maps: Tensor) -> Tensor:
    """T: float [B, C, h, w] -> the same shape, all but the first highest channel of each place 0."""
    value, channel = maps.max(1, keepdim=True)
    return torch.zeros_like(maps).scatter_(1, channel, value)


def as_bytes(maps: Tensor) -> NDArray[np.uint8]:
    """Maps float 0..1 in 8 bits: 255 stands for 1."""
    stored: NDArray[np.uint8] = (maps.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return stored


def enlarged(maps: Tensor, side: int) -> Tensor:
    """Bilinear enlargement: float [B, C, h, w] -> [B, C, side, side]."""
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)


def pools_of(maps: NDArray[np.uint8], none: bool) -> list[Tensor]:
    """Windows to draw from in equal numbers, int64 [n] each, none of them empty: those of each class, and the rest.

    maps: uint8 [M, C, h, w]; none: whether channel 0 speaks against all classes. A window is of a class that is the
    strongest in any of its cells, of several the one that is so in most.
    """
    classes = maps[:, int(none) :]
    value, kind = classes.max(1), classes.argmax(1)
    shown = (value > maps[:, 0]) if none else value > 0
    cells = np.stack([(shown & (kind == c)).sum((1, 2)) for c in range(classes.shape[1])], 1)
    of = np.where(cells.any(1), cells.argmax(1), classes.shape[1])
    return [torch.from_numpy(np.flatnonzero(of == c)) for c in np.unique(of)]


def train_refiner(
    model: nn.Module,
    rgb: NDArray[np.uint8],
    maps: NDArray[np.uint8],
    how: RefinerTraining,
    compute: ComputeContext,
    none: bool = False,
) -> list[float]:
    """Train `model` to give from windows uint8 [M, 3, s, s] their maps, uint8 [M, C, h, w] where 255 is 1.

    model: windows (normalised) float [B, 3, s, s] -> float [B, C, h', w'], enlarged to s for the loss. none: whether
    channel 0 speaks against all classes. Returns the loss of every step.
    """
    side, pools = rgb.shape[-1], pools_of(maps, none)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        g = generator(compute.seed, 5, step)
        chosen = balanced_sample(pools, -(-how.batch // len(pools)), g).numpy()
        x, y = (torch.from_numpy(values[chosen]).float() / 255 for values in (rgb, maps))
        return TissueAugment(how.stain_jitter).with_maps(x, y, g)

    def loss(item: tuple[Tensor, Tensor]) -> Tensor:
        x, stored = (t.to(compute.device) for t in item)
        target = strongest_only(enlarged(stored, side))
        return F.mse_loss(enlarged(model(normalise(x)).float(), side), target)

    return fit(model, draw, loss, Schedule(how.steps, how.lr), "refine", compute)
