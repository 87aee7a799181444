"""Refinement by superpixels (SLIC): every cell gets the mean evidence of its superpixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import slic
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.pseudolabel.params import NamedParams

SMOOTHED_PX = 1.0
"""Standard deviation, in cells, of the Gaussian blur before SLIC: the grain of tissue would fragment superpixels."""


@dataclass(frozen=True)
class Params(NamedParams):
    """Parameters of the superpixels."""

    NAME = "slic"

    side_um: float = option(40.0, "side in um of the square with the area of a superpixel")
    compactness: float = option(10.0, "higher: superpixels are squares; lower: they follow colour")

    def __post_init__(self) -> None:
        self.check_positive("side_um", "compactness")


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Mean evidence float32 [C, h, w] of the superpixels of rgb uint8 [3, h, w]; known bool [h, w].

    Unknown cells have no influence and are returned unchanged.
    """
    return pool_mean(evidence, superpixels(rgb, known, params.side_um / cell_um, params.compactness))


def superpixels(rgb: Tensor, known: Tensor, side_px: float, compactness: float) -> Tensor:
    """Superpixel of every cell, int64 [h, w] on the CPU: 0.. without gaps, -1 for unknown cells.

    SLIC (Achanta et al., IEEE TPAMI 34, 2012) by scikit-image, in CIELAB: rgb uint8 [3, h, w], known bool [h, w].
    side_px: approximate side, in cells, of the square with the area of a superpixel. compactness: distance in CIELAB
    that counts as much as a distance of one side.

    Unknown cells get the colour of the nearest known cell, so that they move no border. SLIC's own mask has the same
    effect but takes ten times as long, since it finds its initial centres by k-means.
    """
    out = torch.full(known.shape, -1, dtype=torch.int64)
    known_np = known.cpu().numpy()
    if not known_np.any():
        return out
    picture = rgb.permute(1, 2, 0).cpu().numpy()
    y, x = distance_transform_edt(~known_np, return_distances=False, return_indices=True)
    count = max(1, round(known_np.size / side_px**2))
    found = torch.from_numpy(slic(picture[y, x], count, compactness, sigma=SMOOTHED_PX, start_label=0))
    out[known.cpu()] = torch.unique(found[known.cpu()], return_inverse=True)[1]
    return out


def pool_mean(values: Tensor, segments: Tensor) -> Tensor:
    """Every cell gets the mean of its superpixel: float32 [C, h, w], int64 [h, w] -> float32 [C, h, w].

    Cells of segment -1 are returned unchanged. Sums are computed on the CPU, where their order is fixed.
    """
    member = segments >= 0
    of = segments[member]
    mine = values.cpu()[:, member].double()
    count = torch.bincount(of)
    total = torch.zeros(len(values), len(count), dtype=torch.float64).index_add_(1, of, mine)
    out = values.cpu().clone()
    out[:, member] = (total / count)[:, of].float()
    return out.to(values.device)
