"""Refinement by a dense CRF (see `shared.crf`): labels agree within a few um and between cells of similar colour.

The unary of a channel is -log clip(evidence, 1e-5, 1); the result is the probability of each channel after mean field.
The published settings of histology, for pixels of 1.2143 um (Chan et al., ICCV 2019), in um:

    tissue by function, glands   gauss 3.6 um, 40   bilateral 12 um, colour  4, 25   5 iterations
    tissue by morphology         gauss 1.2 um, 20   bilateral 12 um, colour 40, 50   5 iterations

Cells here are larger, 4 to 8 um, and each has the mean colour of dozens of pixels. With them the published settings do
little but smooth: 12 um are two or three cells, and a cell has three neighbours within 4 levels of colour. The defaults
suit such cells: 20 levels are about the spread of colours inside one tissue, 20 um exceed its grain, and the weights,
those of IRNet and SEC, do not overrule strong evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.pseudolabel.params import NamedParams
from wsipipe.pseudolabel.shared.crf import Kernels, mean_field, unary_of_map


@dataclass(frozen=True)
class Params(NamedParams):
    """Parameters of the dense CRF."""

    NAME = "crf"

    gauss_um: float = option(8.0, "standard deviation in um of the spatial kernel, which ignores colour")
    gauss_weight: float = option(3.0, "weight of the spatial kernel; 0: none")
    bilateral_um: float = option(
        20.0, "standard deviation in um of the bilateral kernel, between cells of similar colour"
    )
    bilateral_rgb: float = option(20.0, "standard deviation of the bilateral kernel in colour levels, 0..255")
    bilateral_weight: float = option(10.0, "weight of the bilateral kernel; 0: none")
    iterations: int = option(5, "mean-field updates")

    def __post_init__(self) -> None:
        self.check_positive("gauss_um", "bilateral_um", "bilateral_rgb")
        self.check_min(0, "gauss_weight", "bilateral_weight", "iterations")

    def kernels(self, cell_um: float) -> Kernels:
        """The kernels for cells of `cell_um`."""
        gauss_px, bilateral_px = self.gauss_um / cell_um, self.bilateral_um / cell_um
        return Kernels(gauss_px, self.gauss_weight, bilateral_px, self.bilateral_rgb, self.bilateral_weight)


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Probabilities float32 [C, h, w] from evidence float32 [C, h, w] and rgb uint8 [3, h, w]; known bool [h, w].

    Channels that are zero in all known cells are no labels of the CRF and stay zero. Unknown cells have no influence
    and are returned unchanged.
    """
    found = ((evidence > 0) & known).flatten(1).any(1)
    if not found.any():
        return evidence
    q = mean_field(unary_of_map(evidence[found]), rgb, params.kernels(cell_um), params.iterations, known)
    out = torch.zeros_like(evidence, dtype=torch.float32)
    out[found] = q
    return torch.where(known, out, evidence)
