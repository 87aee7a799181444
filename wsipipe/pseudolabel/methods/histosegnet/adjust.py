"""Steps 1 to 6 for windows: class maps, adjusted by the background, other tissue and the classes' rivals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.nn.encoders import normalise
from wsipipe.pseudolabel.method import ScoreContext
from wsipipe.pseudolabel.methods.histosegnet.background import (
    brightness_background,
    glass_centre,
    other_map,
    subtracted,
    tissue_background,
    without_exempt,
)
from wsipipe.pseudolabel.methods.histosegnet.network import HistoSegNet
from wsipipe.pseudolabel.methods.histosegnet.params import Params
from wsipipe.pseudolabel.shared.resize import resize
from wsipipe.runtime.device import autocast

EPSILON = 1e-7
"""Least value that a map is divided by."""


@dataclass(frozen=True)
class Adjustment:
    """What steps 3 to 6 take from a slide.

    map_size: cells along each side of a window. sigma_px: blur of the background in input px. centre: brightness from
    which pixels are glass, None for the tissue mask.
    """

    map_size: int
    sigma_px: float
    centre: float | None

    @classmethod
    def of(cls, context: ScoreContext, params: Params) -> Adjustment:
        """The adjustment for a slide."""
        grid, store = context.instance_grid, context.store
        centre = (params.glass or glass_centre(store)) if params.background == "brightness" else None
        return cls(grid.seen_px // grid.instance_px, store.grid.px_of_um(params.blur_um) / grid.shrink, centre)


@torch.no_grad()
def adjusted(
    model: HistoSegNet,
    rgb: Tensor,
    tissue: Tensor,
    adjust: Adjustment,
    params: Params,
    excluded: Tensor | None = None,
) -> Tensor:
    """Steps 1 to 6 for windows uint8 [B, 3, s, s], bool [B, s, s] -> float32 [B, 2 + K, n, n] in 0..1.

    Channels: background, other, then the classes. excluded: bool [B, K, n, n], where the score of a class is 0 whatever
    the network says. All tensors are on one device.
    """
    with autocast(rgb.device):
        features = model.features(normalise(rgb))
    g, absence = class_evidence(model, features.float(), adjust.map_size, excluded)
    if adjust.centre is None:
        background = tissue_background(tissue, adjust.sigma_px)
    else:
        background = brightness_background(rgb, adjust.centre, adjust.sigma_px)
    background = without_exempt(_at_map_size(background[:, None], adjust.map_size)[:, 0], g, model.exempt)
    unpainted = g[:, model.other]
    g[:, model.other] = 0
    seen = torch.cat([background[:, None], g], 1)
    if params.other_evidence == "absence":
        other = torch.cat([absence[:, None], unpainted], 1).amax(1)
    else:
        other = other_map(seen, params.other_share, unpainted)
    maps = torch.cat([background[:, None], other[:, None], g], 1)
    return subtracted(maps, () if params.other_evidence == "absence" else (1,), params.legacy_inplace)


def class_evidence(
    model: HistoSegNet, activations: Tensor, map_size: int, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """G of steps 2 and 3, float [B, K, n, n], and N, the evidence of absence, float [B, n, n]; A float [B, D, h, w]."""
    s = model.scores(activations).sigmoid()[:, :, None, None]
    if excluded is not None:
        s = s.expand(excluded.shape).masked_fill(excluded, 0)
    own, against = (_at_map_size(m, map_size).clamp(min=0) for m in model.maps(activations))
    most_own, most_against = (m.amax((2, 3), keepdim=True).clamp(min=EPSILON) for m in (own, against))
    present = s >= model.theta.view(1, -1, 1, 1)
    g = torch.where(present, s * own / most_own, 0)
    absence = torch.where(present, s * against / torch.maximum(most_own, most_against), 1 - s)
    return g, absence.amin(1)


def _at_map_size(maps: Tensor, n: int) -> Tensor:
    """Maps float [B, C, h, w] -> [B, C, n, n]: interpolated bilinearly, or averaged over cells if they are larger."""
    if maps.shape[-1] > n:
        return F.adaptive_avg_pool2d(maps, n)
    return resize(maps, (n, n))
