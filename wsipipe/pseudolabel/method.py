"""What a method is: a module of `methods/` that fits bags, scores stores and turns scores into masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.labels import Classes
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.lattice import Lattice
from wsipipe.runtime import Compute
from wsipipe.store import SlideStore


@dataclass(frozen=True)
class ScoreMap:
    """values: float32 [K, rows, cols] 0..1, one cell every `stride_px` working px; nan where nothing was scored."""

    values: NDArray[np.float32]
    stride_px: int


@dataclass(frozen=True)
class Fitting:
    """What a method is given beside bags and parameters.

    encoder() makes a fresh encoder, pretrained if so asked. embed(bags, lattice) gives what that encoder, frozen, makes
    of every instance of every bag, float32 [M, D] each: read from the stores where it was computed before.
    """

    classes: Classes
    encoder: Callable[[], nn.Module]
    self_train: bool
    compute: Compute
    embed: Callable[[Sequence[Bag], Lattice], list[Tensor]]


class Method(Protocol):
    """The contract of a module of `methods/`."""

    Params: type[Any]

    def lattice(self, patch_px: int, params: Any) -> Lattice:
        """Geometry of the instances for patches of `patch_px`."""
        ...

    def build(self, classes: Classes, encoder: nn.Module, lattice: Lattice) -> nn.Module:
        """The untrained scoring network, into which the weights of a fit can be loaded."""
        ...

    def fit(self, bags: Sequence[Bag], lattice: Lattice, params: Any, run: Fitting) -> nn.Module:
        """Learn a scoring network from bags."""
        ...

    def score(self, model: nn.Module, store: SlideStore, lattice: Lattice, params: Any, on: torch.device) -> ScoreMap:
        """Scores of a whole slide."""
        ...

    def refine(self, scores: ScoreMap, params: Any) -> NDArray[np.uint8]:
        """Mask values of each cell of a score map: uint8 [rows, cols] (0 none, k + 1 class k, 255 uncertain)."""
        ...
