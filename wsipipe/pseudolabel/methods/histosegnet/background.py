"""Steps 4 to 6: background, other tissue, and the margin of the highest class (Chan et al., ICCV 2019).

All maps are float 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsipipe.geometry import Window
from wsipipe.labels import Tissue
from wsipipe.pseudolabel.shared.blur import blurred
from wsipipe.store import SlideStore

GLASS_LEVEL = 0.75
"""Value of the background on pure glass."""

SLOPE = 4.0
"""Slope of the sigmoid per grey level: practically a threshold."""

GLASS = 240.0
"""Brightness (0..255) from which pixels are glass in the published method."""

BELOW_GLASS = 5.0
"""Grey levels between the glass of a slide and its threshold."""


def brightness_background(rgb: Tensor, centre: float, sigma_px: float) -> Tensor:
    """Step 4, before exempt classes: 0.75 sigmoid(4 (I - centre)), blurred; I: mean of R, G and B.

    rgb: uint8 or float 0..255 [B, 3, h, w] -> float32 [B, h, w].
    """
    return blurred(GLASS_LEVEL * torch.sigmoid(SLOPE * (rgb.float().mean(1) - centre)), sigma_px)


def tissue_background(tissue: Tensor, sigma_px: float) -> Tensor:
    """The background by the tissue mask: 0.75 (1 - tissue), blurred; bool [B, h, w] -> float32 [B, h, w]."""
    return blurred(GLASS_LEVEL * (~tissue).float(), sigma_px)


def glass_centre(store: SlideStore) -> float:
    """Brightness from which pixels of a slide are glass: `BELOW_GLASS` below the brightness of its glass.

    That is the third quartile outside tissue on the coarsest level: ink, dirt and faint tissue are darker, and a higher
    quantile would be that of noise. Pixels of 255 count only if there are no others, since pixels that are not stored
    read as 255. A slide without glass gets the published threshold.
    """
    level = store.grid.levels - 1
    height, width = store.grid.level_shape(level)
    whole = Window(0, 0, width, height)
    glass = store.read(whole, level)[store.labels("tissue", level).read(whole) == Tissue.GLASS].mean(-1)
    if not len(glass):
        return GLASS
    stored = glass[glass < 255]
    return float(np.quantile(stored if len(stored) else glass, 0.75)) - BELOW_GLASS


def without_exempt(background: Tensor, maps: Tensor, exempt: Sequence[int]) -> Tensor:
    """Step 4, last part: clip(background - max over the `exempt` classes, 0, 1), since fat and lumina are bright too.

    background: float [B, h, w], maps: float [B, K, h, w] -> float [B, h, w].
    """
    if not exempt:
        return background.clamp(0, 1)
    return (background - maps[:, list(exempt)].amax(1)).clamp(0, 1)


def other_map(maps: Tensor, share: float, also: Tensor | None = None) -> Tensor:
    """Step 5: clip(max(share (1 - max_c G_c), also), 0, 1); the share is 0.05 as published.

    maps: float [B, C, h, w], the classes and the background. also: float [B, A, h, w], maps of classes that count as
    other tissue (fat in the published method). Returns float [B, h, w].
    """
    other = share * (1 - maps.amax(1))
    if also is not None and also.shape[1]:
        other = torch.maximum(other, also.amax(1))
    return other.clamp(0, 1)


def subtracted(maps: Tensor, kept: Sequence[int] = (), legacy_inplace: bool = False) -> Tensor:
    """Step 6: S_c = max(G_c - max over d != c of G_d, 0), but S_c = G_c for the channels `kept` (Other).

    At each position only the highest channel keeps something: its margin. legacy_inplace: as in the released code,
    which replaces one channel after the other by its margin over channels that are partly replaced already, and
    rectifies last. maps: float [B, C, h, w] -> the same shape.
    """
    changed = [c for c in range(maps.shape[1]) if c not in kept]
    if maps.shape[1] == 1:
        return maps.clone()
    if legacy_inplace:
        out = maps.clone()
        for c in changed:
            out[:, c] -= torch.cat([out[:, :c], out[:, c + 1 :]], 1).amax(1)
        return out.clamp(0, 1)
    first, second = maps.topk(2, dim=1).values.unbind(1)
    out = maps.clone()
    highest = maps == first.unsqueeze(1)
    out[:, changed] = torch.where(highest, (first - second).unsqueeze(1), 0)[:, changed]
    return out
