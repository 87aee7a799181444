"""Refinement by the dense CRF of `parts.crf`: labels that agree within a few um and with cells of the same colour.

The unary of a channel is -log clip(evidence, 1e-5, 1), the result the probabilities of the channels after mean field.
The published settings of histology, for pixels of 1.2143 um (Chan et al., ICCV 2019), in um:

    tissue by function, glands   gauss 3.6 um, 40   bilateral 12 um, colour  4, 25   5 iterations
    tissue by morphology         gauss 1.2 um, 20   bilateral 12 um, colour 40, 50   5 iterations

Cells here are larger, 4 to 8 um, and each has the mean colour of dozens of pixels. There the published settings do
little but smooth: 12 um are two or three cells, and of those within 4 levels of colour a cell has three. The defaults
are for such cells: 20 levels are about the spread of colours inside one tissue, 20 um reach over its grain, and the
weights, those of IRNet and SEC, leave the last word to the evidence where it is strong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsipipe.config.options import option
from wsipipe.errors import check
from wsipipe.pseudolabel.shared.crf import Kernels, mean_field, unary_of_map


@dataclass(frozen=True)
class Params:
    """Parameters of the dense CRF."""

    gauss_um: float = option(8.0, "deviation (um) of the kernel that smooths whatever the colours")
    gauss_weight: float = option(3.0, "weight of that kernel; 0 leaves it out")
    bilateral_um: float = option(20.0, "deviation (um) of the kernel between cells of like colour")
    bilateral_rgb: float = option(20.0, "difference of colour, in levels of 0..255, that is a deviation of that kernel")
    bilateral_weight: float = option(10.0, "weight of that kernel; 0 leaves it out")
    iterations: int = option(5, "updates of the mean field")

    def __post_init__(self) -> None:
        for name in ("gauss_um", "bilateral_um", "bilateral_rgb"):
            check(getattr(self, name) > 0, f"crf.{name}: {getattr(self, name)} is not above 0")
        for name in ("gauss_weight", "bilateral_weight", "iterations"):
            check(getattr(self, name) >= 0, f"crf.{name}: {getattr(self, name)} is negative")

    def kernels(self, cell_um: float) -> Kernels:
        """The kernels on cells of `cell_um`."""
        gauss_px, bilateral_px = self.gauss_um / cell_um, self.bilateral_um / cell_um
        return Kernels(gauss_px, self.gauss_weight, bilateral_px, self.bilateral_rgb, self.bilateral_weight)


def refine(evidence: Tensor, rgb: Tensor, known: Tensor, cell_um: float, params: Params) -> Tensor:
    """Probabilities float32 [C, h, w] from evidence float32 [C, h, w] and rgb uint8 [3, h, w]; known bool [h, w].

    Channels that are zero in all known cells are no labels of the CRF and come back as zeros. Cells that are not known
    take no part and come back as they were.
    """
    found = ((evidence > 0) & known).flatten(1).any(1)
    if not found.any():
        return evidence
    q = mean_field(unary_of_map(evidence[found]), rgb, params.kernels(cell_um), params.iterations, known)
    out = torch.zeros_like(evidence, dtype=torch.float32)
    out[found] = q
    return torch.where(known, out, evidence)
