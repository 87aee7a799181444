"""Refinement by a vote of superpixels (SLIC): every cell has the mean evidence of its superpixel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wsipipe.config import check, option
from wsipipe.pseudolabel.parts.superpixels import pool_mean, superpixels


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
