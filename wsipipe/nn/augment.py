"""Random views of tissue, made batch-wise on the device of the batch; every draw comes from a given generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
"""Optical densities (R, G, B) of haematoxylin, eosin and the rest; Ruifrok & Johnston 2001, table 1."""

STAIN_STRENGTH = 0.4
"""How far stains are perturbed in training: beyond what laboratories differ by, so that a class is not learnt by its
colour (the strong setting of Tellez et al. 2019 did best across laboratories)."""


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """float32 in [low, high), drawn on the CPU so that every device sees the same numbers."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def dihedral(x: Tensor, element: Tensor) -> Tensor:
    """Apply one of the 8 symmetries of the square to each image: x [B, C, S, S], element int [B] in 0..7.

    Bit 2 transposes, bit 1 flips rows, bit 0 flips columns, in this order. Exact: no pixel is interpolated.
    """
    e = element.view(-1, 1, 1, 1).to(x.device)
    x = torch.where((e & 4) > 0, x.transpose(-1, -2), x)
    x = torch.where((e & 2) > 0, x.flip(-2), x)
    return torch.where((e & 1) > 0, x.flip(-1), x)


def random_dihedral(generator: Generator, count: int) -> Tensor:
    """One element of the dihedral group for each of `count` images: int64 [count]."""
    return torch.randint(0, 8, (count,), generator=generator)


def stain_jitter(rgb: Tensor, strength: float, generator: Generator) -> Tensor:
    """Perturb stain concentrations: rgb float 0..1 [B, 3, H, W] -> the same shape and range.

    Beer-Lambert: OD = -ln(rgb) = c S. Each concentration is scaled by 1 + U(-strength, strength) and shifted by
    U(-strength, strength) / 10 where there is stain (Tellez et al. 2019, in optical density). `strength` 0 changes
    nothing; 0.2 moves the colour of H&E tissue by about 5 grey levels, one channel by 25 at most.
    """
    b = rgb.shape[0]
    stains = torch.tensor(STAINS, device=rgb.device)
    stains = stains / stains.norm(dim=1, keepdim=True)
    od = -torch.log(rgb.clamp(min=1 / 255))
    c = torch.einsum("bihw,ij->bjhw", od, torch.linalg.inv(stains))
    scale = 1 + uniform((b, 3, 1, 1), -strength, strength, generator).to(rgb.device)
    shift = uniform((b, 3, 1, 1), -strength / 10, strength / 10, generator).to(rgb.device)
    stained = (od.mean(1, keepdim=True) / 0.1).clamp(0, 1)
    c = c * scale + shift * stained
    return torch.exp(-torch.einsum("bjhw,ji->bihw", c, stains)).clamp(0, 1)


def random_crop(x: Tensor, size: int, area: tuple[float, float], generator: Generator) -> Tensor:
    """A random square of each image resized to `size`: x [B, C, S, S] -> [B, C, size, size].

    The square's area is U(area) of a `size` square (so scale 1 means no zoom) and lies inside the image.
    """
    b, s = x.shape[0], x.shape[-1]
    side = torch.sqrt(uniform((b,), *area, generator)) * size / s
    side = side.clamp(max=1)
    offset = uniform((b, 2), -1, 1, generator) * (1 - side).unsqueeze(1)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = offset
    grid = F.affine_grid(theta, [b, x.shape[1], size, size], align_corners=False)
    return F.grid_sample(x, grid.to(x.device), align_corners=False, padding_mode="reflection")


def blur(x: Tensor, chance: float, generator: Generator) -> Tensor:
    """A slight blur (binomial 3x3) on a share `chance` of the images: [B, C, H, W]."""
    k = torch.tensor([1.0, 2.0, 1.0], device=x.device) / 4
    kernel = torch.outer(k, k).expand(x.shape[1], 1, 3, 3)
    soft = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
    chosen = (torch.rand(x.shape[0], generator=generator) < chance).view(-1, 1, 1, 1)
    return torch.where(chosen.to(x.device), soft, x)


def random_zoom(x: Tensor, maps: Tensor, size: int, max_zoom: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """The middle of each image resized to `size`: x bilinearly, `maps` by the nearest pixel.

    x: float [B, 3, R, R], maps: float [B, M, R, R]. The middle is 1 / max_zoom to max_zoom times `size` wide, on a
    logarithmic scale, and at most R.
    """
    b, reach = len(x), x.shape[-1]
    side = torch.exp(uniform((b,), -math.log(max_zoom), math.log(max_zoom), generator)) * size / reach
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side.clamp(max=1)
    grid = F.affine_grid(theta, [b, 1, size, size], align_corners=False).to(x.device)
    sharp = F.grid_sample(maps, grid, mode="nearest", padding_mode="border", align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False), sharp


class Step(Protocol):
    """One augmentation of images float 0..1 [B, 3, S, S] and, if given, maps [B, M, s, s] that follow its geometry."""

    def __call__(self, x: Tensor, maps: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """The images and maps, augmented."""
        ...


@dataclass(frozen=True)
class Crop:
    """A random square of `area` (share of a `size` square), resized to `size` px (0: that of the image); no maps."""

    area: tuple[float, float]
    size: int = 0

    def __call__(self, x: Tensor, maps: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """See `random_crop`."""
        assert maps is None
        return random_crop(x, self.size or x.shape[-1], self.area, generator), None


@dataclass(frozen=True)
class Zoom:
    """The middle of an image enlarged or reduced by up to `max_zoom`, to `size` px."""

    max_zoom: float
    size: int

    def __call__(self, x: Tensor, maps: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """See `random_zoom`."""
        assert maps is not None
        return random_zoom(x, maps, self.size, self.max_zoom, generator)


@dataclass(frozen=True)
class Symmetry:
    """One of the 8 symmetries of the square."""

    def __call__(self, x: Tensor, maps: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """See `dihedral`."""
        element = random_dihedral(generator, len(x))
        return dihedral(x, element), None if maps is None else dihedral(maps, element)


@dataclass(frozen=True)
class StainJitter:
    """Perturbed stain concentrations; maps stay."""

    strength: float

    def __call__(self, x: Tensor, maps: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """See `stain_jitter`."""
        return stain_jitter(x, self.strength, generator), maps


@dataclass(frozen=True)
class Blur:
    """A slight blur on a share `prob` of the images; maps stay."""

    prob: float

    def __call__(self, x: Tensor, maps: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """See `blur`."""
        return blur(x, self.prob, generator), maps


@dataclass(frozen=True)
class TissueAugment:
    """The augmentation chain of every training: geometry of its own, then the steps that all share.

    To add an augmentation, write a `Step` and add its row to `steps`. geometry: steps that come first. stain_jitter:
    strength of the stain jitter. blur_prob: share of blurred images. Maps follow the geometry and keep their values.
    """

    stain_jitter: float = STAIN_STRENGTH
    geometry: tuple[Step, ...] = ()
    blur_prob: float = 0.2

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        return (*self.geometry, Symmetry(), StainJitter(self.stain_jitter), Blur(self.blur_prob))

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Augment images float 0..1 [B, 3, S, S]; the range stays."""
        for step in self.steps:
            x, _ = step(x, None, generator)
        return x

    def with_maps(self, x: Tensor, maps: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Augment images float 0..1 [B, 3, S, S] together with maps [B, M, s, s], which may be coarser."""
        both: tuple[Tensor, Tensor | None] = (x, maps)
        for step in self.steps:
            both = step(*both, generator)
        assert both[1] is not None
        return both[0], both[1]


def enlargement(max_zoom: float) -> tuple[Step, ...]:
    """The geometry that enlarges a random part by 1 to `max_zoom`; none if that is 1."""
    return (Crop((1 / max_zoom**2, 1.0)),) if max_zoom > 1 else ()
