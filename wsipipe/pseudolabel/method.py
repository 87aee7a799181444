"""What a method is: a module of `methods/` that fits bags, scores stores and turns scores into masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.labels import IGNORE, Classes
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore


@dataclass(frozen=True)
class ScoreMap:
    """Evidence for the classes and against them, one cell every `stride_px` working px.

    values: float32 [K, rows, cols] 0..1. none: float32 [rows, cols] 0..1, the evidence for none of the classes (other
    tissue or glass), which a class has to exceed to be painted. Both are nan where nothing was scored. complement:
    whether `none` is one minus the highest value, so that the border of a class lies at 0.5.
    """

    values: NDArray[np.float32]
    none: NDArray[np.float32]
    stride_px: int
    complement: bool = False

    @classmethod
    def of_probabilities(cls, values: NDArray[np.float32], stride_px: int) -> ScoreMap:
        """A map of independent probabilities; what speaks against all classes is the complement of the likeliest."""
        return cls(values, 1 - np.fmax.reduce(values, axis=0), stride_px, complement=True)

    def without(self, excluded: NDArray[np.bool_]) -> ScoreMap:
        """The map with `excluded`, bool [K, rows, cols], set to 0; where all classes are excluded, none is certain."""
        values = np.where(excluded & self.known, np.float32(0), self.values)
        if self.complement:
            return self.of_probabilities(values, self.stride_px)
        return replace(self, values=values, none=np.where(excluded.all(0) & self.known, np.float32(1), self.none))

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where anything was scored: bool [rows, cols]."""
        return ~np.isnan(self.none)


def strongest(scores: ScoreMap) -> NDArray[np.uint8]:
    """The plain rule: the class with the most evidence where it exceeds that for none, else 0; 255 where not scored."""
    values = np.nan_to_num(scores.values, nan=0.0)
    mask = np.where(values.max(0) > scores.none, values.argmax(0) + 1, 0).astype(np.uint8)
    mask[~scores.known] = IGNORE
    return mask


@dataclass(frozen=True)
class FitContext:
    """What a method is given beside bags and parameters.

    encoder() makes a fresh encoder, pretrained if so asked. embed(bags, lattice) gives what that encoder, frozen, makes
    of every instance of every bag, float32 [M, D] each: read from the stores where it was computed before.
    """

    classes: Classes
    encoder: Callable[[], nn.Module]
    self_train: bool
    compute: ComputeContext
    embed: Callable[[Sequence[Bag], InstanceGrid], list[Tensor]]


class Method(Protocol):
    """The contract of a module of `methods/`.

    REFINEMENT names the module of `refine/` that follows unless another is asked for; `none` for none.
    """

    Params: type[Any]
    REFINEMENT: str

    def lattice(self, patch_px: int, params: Any) -> InstanceGrid:
        """Geometry of the instances for patches of `patch_px`."""
        ...

    def build(self, classes: Classes, encoder: nn.Module, lattice: InstanceGrid, params: Any) -> nn.Module:
        """The untrained scoring network, into which the weights of a fit can be loaded; constants are its buffers."""
        ...

    def fit(self, bags: Sequence[Bag], lattice: InstanceGrid, params: Any, run: FitContext) -> nn.Module:
        """Learn a scoring network from bags."""
        ...

    def score(
        self,
        model: nn.Module,
        store: SlideStore,
        lattice: InstanceGrid,
        params: Any,
        on: torch.device,
        excluded: NDArray[np.bool_] | None = None,
    ) -> ScoreMap:
        """Scores of a whole slide.

        denied: bool [K, rows, cols], one a cell of `lattice.instance_px`: where labels say that a class is absent. A
        method in which classes compete takes it into account; what is denied is taken out of its scores in any case.
        """
        ...

    def mask(self, scores: ScoreMap, params: Any) -> NDArray[np.uint8]:
        """Mask values of each cell of a score map: uint8 [rows, cols] (0 none, k + 1 class k, 255 uncertain)."""
        ...


@runtime_checkable
class FindsObjects(Protocol):
    """What a method adds to `Method` if its masks can be cut into objects; its Params have a bool `displacement`."""

    def displacement_px(self, lattice: InstanceGrid) -> int:
        """Working px along a side of a cell of displacements."""
        ...

    def displacements(
        self, model: nn.Module, store: SlideStore, lattice: InstanceGrid, wanted: NDArray[np.bool_], on: torch.device
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Displacements (y, x) to object centres, in cells, float32 [2, rows, cols], and where they are known.

        wanted: bool [rows, cols], the cells whose displacement is needed.
        """
        ...
