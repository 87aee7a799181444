"""Refinement by a random walk between boundaries that come from the image, so that it can follow any method.

The walk is that of IRNet (Ahn, Cho & Kwak, CVPR 2019; see `shared.walk`): evidence spreads between cells that no
boundary separates, M* = (M (1 - B)) T^t. IRNet learns the boundary map; here it comes from smoothed optical density,
OD = -ln(rgb / 255):

    g(x) = length of the gradient of OD over the three channels
    B(x) = 1 - exp(-(g(x) / (contrast * median of g))^2 / 2)

so that boundaries stand out against the texture of the window, however strongly it is stained; `FLAT` keeps the grain
of flat tissue from becoming a boundary. Unknown cells are boundaries too.

Deviation from M (1 - B): the walk starts from M, since evidence does not end at boundaries of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.pseudolabel.params import NamedParams
from wsipipe.pseudolabel.shared.blur import blurred
from wsipipe.pseudolabel.shared.walk import BETA, STEPS, Walk, spread

FLAT = 0.01
"""Median gradient, in optical density per cell, below which tissue counts as flat."""

RADII = (2, 10)
"""Smallest and largest radius in cells."""


@dataclass(frozen=True)
class Params(NamedParams):
    """Parameters of the walk between boundaries of the image."""

    NAME = "walk"

    steps: int = option(STEPS, "steps of the walk; many steps smear fine mosaics")
    radius_um: float = option(40.0, "cells closer than this, in um, are neighbours; limited to 2..10 cells")
    beta: float = option(BETA, "exponent of affinities; higher: fainter boundaries stop the walk")
    smooth_um: float = option(
        8.0, "standard deviation in um of the blur before the gradient; finer detail is no boundary"
    )
    contrast: float = option(3.0, "gradient of a boundary, in medians of the window")

    def __post_init__(self) -> None:
        self.check_min(0, "steps")
        self.check_positive("radius_um", "beta", "contrast")
        self.check("smooth_um", 0 <= self.smooth_um < math.inf, "is not a finite number of at least 0")


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Evidence float32 [C, h, w] >= 0 spread up to the boundaries of rgb uint8 [3, h, w]; known bool [h, w].

    Unknown cells have no influence and are returned unchanged.
    """
    if not known.any():
        return evidence
    boundary = image_boundary(rgb.to(evidence.device), known, params.smooth_um / cell_um, params.contrast)
    radius = min(max(math.ceil(params.radius_um / cell_um), RADII[0]), RADII[1])
    start = torch.where(known, evidence, 0)
    out = spread(start[None], boundary[None], Walk(params.steps, params.beta, radius))[0]
    return torch.where(known, out, evidence)


def image_boundary(rgb: Tensor, known: Tensor, smooth: float, contrast: float) -> Tensor:
    """B float32 0..1 [h, w] of rgb uint8 [3, h, w]; `smooth` in cells, `contrast` in medians; 1 in unknown cells.

    Unknown cells influence neither the smoothing nor a gradient.
    """
    od = -torch.log((rgb.float() / 255).clamp_min(1 / 255))
    weight = blurred(known.float()[None], smooth)
    od = blurred(torch.where(known, od, 0), smooth) / weight.clamp_min(1e-6)
    g = gradient(od, known)
    typical = g[known].median().clamp_min(FLAT)
    return torch.where(known, 1 - torch.exp(-((g / (contrast * typical)) ** 2) / 2), 1)


def gradient(values: Tensor, known: Tensor) -> Tensor:
    """Length of the gradient over all channels, per cell: float [C, h, w], known bool [h, w] -> float [h, w].

    Mean of the squared differences to both sides of each axis; differences to unknown cells count as 0.
    """
    squares = torch.zeros_like(values[0])
    for axis in (0, 1):
        n = values.shape[axis + 1] - 1
        step = (values.narrow(axis + 1, 1, n) - values.narrow(axis + 1, 0, n)) ** 2
        step = step.sum(0) * (known.narrow(axis, 1, n) & known.narrow(axis, 0, n))
        squares.narrow(axis, 0, n).add_(step / 2)
        squares.narrow(axis, 1, n).add_(step / 2)
    return squares.sqrt()
