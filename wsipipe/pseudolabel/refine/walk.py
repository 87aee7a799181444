"""Refinement by a random walk whose walls come from the image, so that it can follow any method.

The walk is that of IRNet (Ahn, Cho & Kwak, CVPR 2019; see `parts.walk`): evidence spreads between cells that no
boundary parts, M* = (M (1 - B)) T^t. Where IRNet learns the boundary map, here it is made of optical density,
OD = -ln(rgb / 255), smoothed:

    g(x) = length of the gradient of OD over the three channels
    B(x) = 1 - exp(-(g(x) / (contrast * median of g))^2 / 2)

so that walls are what stands out against the texture of the window, however strongly it is stained; `FLAT` keeps the
grain of flat tissue from being walls. What is not known is a wall too.

Deviation from M (1 - B): here the walk starts from M, as walls of an image are no place where evidence ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.errors import check
from wsipipe.pseudolabel.shared.blur import blurred
from wsipipe.pseudolabel.shared.walk import BETA, STEPS, Walk, spread

FLAT = 0.01
"""Optical density a cell below which a median gradient is that of flat tissue."""

RADII = (2, 10)
"""Least and largest radius in cells."""


@dataclass(frozen=True)
class Params:
    """Parameters of the walk between walls of the image."""

    steps: int = option(STEPS, "steps of the walk; many smear fine mosaics")
    radius_um: float = option(40.0, "distance (um) below which cells are neighbours; 2 to 10 cells are used")
    beta: float = option(BETA, "exponent of affinities: higher, and fainter walls hold")
    smooth_um: float = option(8.0, "deviation (um) of the Gaussian before the gradient: finer detail is no wall")
    contrast: float = option(3.0, "gradient, in medians of the window, that is a wall")

    def __post_init__(self) -> None:
        check(self.steps >= 0, f"walk.steps: {self.steps} is negative")
        for name in ("radius_um", "beta", "contrast"):
            check(0 < getattr(self, name) < math.inf, f"walk.{name}: {getattr(self, name)} is not above 0")
        check(0 <= self.smooth_um < math.inf, f"walk.smooth_um: {self.smooth_um} is negative")


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Evidence float32 [C, h, w] >= 0 spread up to the walls of rgb uint8 [3, h, w]; known bool [h, w].

    Cells that are not known take no part and come back as they were.
    """
    if not known.any():
        return evidence
    walls = image_boundary(rgb.to(evidence.device), known, params.smooth_um / cell_um, params.contrast)
    radius = min(max(math.ceil(params.radius_um / cell_um), RADII[0]), RADII[1])
    start = torch.where(known, evidence, 0)
    out = spread(start[None], walls[None], Walk(params.steps, params.beta, radius))[0]
    return torch.where(known, out, evidence)


def image_boundary(rgb: Tensor, known: Tensor, smooth: float, contrast: float) -> Tensor:
    """B float32 0..1 [h, w] of rgb uint8 [3, h, w]; `smooth` in cells, `contrast` in medians; 1 where not known.

    Cells that are not known have no share in the smoothing, nor in a gradient.
    """
    od = -torch.log((rgb.float() / 255).clamp_min(1 / 255))
    weight = blurred(known.float()[None], smooth)
    od = blurred(torch.where(known, od, 0), smooth) / weight.clamp_min(1e-6)
    g = gradient(od, known)
    typical = g[known].median().clamp_min(FLAT)
    return torch.where(known, 1 - torch.exp(-((g / (contrast * typical)) ** 2) / 2), 1)


def gradient(values: Tensor, known: Tensor) -> Tensor:
    """Length of the gradient over all channels, a cell: float [C, h, w], known bool [h, w] -> float [h, w].

    Mean of the squared differences to both sides of each axis; a difference to what is not known counts as 0.
    """
    squares = torch.zeros_like(values[0])
    for axis in (0, 1):
        n = values.shape[axis + 1] - 1
        step = (values.narrow(axis + 1, 1, n) - values.narrow(axis + 1, 0, n)) ** 2
        step = step.sum(0) * (known.narrow(axis, 1, n) & known.narrow(axis, 0, n))
        squares.narrow(axis, 0, n).add_(step / 2)
        squares.narrow(axis, 1, n).add_(step / 2)
    return squares.sqrt()
