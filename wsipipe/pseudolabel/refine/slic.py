"""Refinement by a vote of superpixels (SLIC): every cell has the mean evidence of its superpixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import slic
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.errors import check

SMOOTHED_PX = 1.0
"""Deviation, in cells, of the Gaussian that goes before: the grain of tissue would tear superpixels to shreds."""


@dataclass(frozen=True)
class Params:
    """Parameters of the vote of superpixels."""

    side_um: float = option(40.0, "side (um) of the square that has the area of a superpixel")
    compactness: float = option(10.0, "higher, and superpixels are squares; lower, and they follow colour")

    def __post_init__(self) -> None:
        for name in ("side_um", "compactness"):
            check(getattr(self, name) > 0, f"slic.{name}: {getattr(self, name)} is not above 0")


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Mean evidence float32 [C, h, w] of the superpixels of rgb uint8 [3, h, w]; known bool [h, w].

    Cells that are not known take no part and come back as they were.
    """
    return pool_mean(evidence, superpixels(rgb, known, params.side_um / cell_um, params.compactness))


def superpixels(rgb: Tensor, known: Tensor, side_px: float, compactness: float) -> Tensor:
    """Superpixel of every cell, int64 [h, w] on the CPU: 0.. without gaps, -1 where a cell is not known.

    SLIC (Achanta et al., IEEE TPAMI 34, 2012) by scikit-image, in CIELAB: rgb uint8 [3, h, w], known bool [h, w];
    side_px: side, in cells, of the square that has the area of a superpixel, about; compactness: distance in CIELAB
    that weighs as much as a distance of one side.

    A cell that is not known has the colour of the nearest that is, so that it moves no border. SLIC's own mask does the
    same in ten times the time, as it seeks the first centres by k-means.
    """
    out = torch.full(known.shape, -1, dtype=torch.int64)
    seen = known.cpu().numpy()
    if not seen.any():
        return out
    picture = rgb.permute(1, 2, 0).cpu().numpy()
    y, x = distance_transform_edt(~seen, return_distances=False, return_indices=True)
    count = max(1, round(seen.size / side_px**2))
    found = torch.from_numpy(slic(picture[y, x], count, compactness, sigma=SMOOTHED_PX, start_label=0))
    out[known.cpu()] = torch.unique(found[known.cpu()], return_inverse=True)[1]
    return out


def pool_mean(values: Tensor, segments: Tensor) -> Tensor:
    """Every cell has the mean of its superpixel: float32 [C, h, w], int64 [h, w] -> float32 [C, h, w].

    Cells of segment -1 come back as they were. The sums are made on the CPU, where their order is fixed.
    """
    member = segments >= 0
    of = segments[member]
    mine = values.cpu()[:, member].double()
    count = torch.bincount(of)
    total = torch.zeros(len(values), len(count), dtype=torch.float64).index_add_(1, of, mine)
    out = values.cpu().clone()
    out[:, member] = (total / count)[:, of].float()
    return out.to(values.device)
