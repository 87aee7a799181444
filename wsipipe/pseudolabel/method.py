"""The contract of a method: a module of `methods/` that fits bags, scores slides and turns scores into masks."""

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
    """Scores of the classes and of the background, one cell per `stride_px` working px.

    values: float32 [K, rows, cols] in 0..1. background: float32 [rows, cols] in 0..1, the evidence against all classes
    (glass or other tissue), which a class must exceed to be painted. Both are nan where nothing was scored.
    complement: whether the background is one minus the highest class, so that the threshold of a class is 0.5.
    """

    values: NDArray[np.float32]
    background: NDArray[np.float32]
    stride_px: int
    complement: bool = False

    @classmethod
    def of_probabilities(cls, values: NDArray[np.float32], stride_px: int) -> ScoreMap:
        """A map of independent probabilities; the background is the complement of the likeliest class."""
        return cls(values, 1 - np.fmax.reduce(values, axis=0), stride_px, complement=True)

    def without(self, excluded: NDArray[np.bool_]) -> ScoreMap:
        """The map with `excluded`, bool [K, rows, cols], set to 0; the background is 1 where all are excluded."""
        values = np.where(excluded & self.known, np.float32(0), self.values)
        if self.complement:
            return self.of_probabilities(values, self.stride_px)
        background = np.where(excluded.all(0) & self.known, np.float32(1), self.background)
        return replace(self, values=values, background=background)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which cells were scored: bool [rows, cols]."""
        scored: NDArray[np.bool_] = ~np.isnan(self.background)
        return scored


def argmax_mask(scores: ScoreMap) -> NDArray[np.uint8]:
    """The highest class where it exceeds the background, else 0; 255 where not scored: uint8 [rows, cols]."""
    values = np.nan_to_num(scores.values, nan=0.0)
    mask = np.where(values.max(0) > scores.background, values.argmax(0) + 1, 0).astype(np.uint8)
    mask[~scores.known] = IGNORE
    return mask


@dataclass(frozen=True)
class FitContext:
    """What a method gets for a fit, beside bags and parameters.

    encoder() creates a new encoder with its starting weights. self_train: whether to add a round of self-training.
    embed(bags, instance_grid) gives the features of all instances by that encoder, frozen: float32 [M, D] per bag,
    read from the stores where they were computed before.
    """

    classes: Classes
    encoder: Callable[[], nn.Module]
    self_train: bool
    compute: ComputeContext
    embed: Callable[[Sequence[Bag], InstanceGrid], list[Tensor]]


@dataclass(frozen=True)
class ScoreContext:
    """What a method gets to score a slide, beside the fitted network and the parameters.

    excluded: bool [K, rows, cols], one cell per `instance_grid.instance_px`: where labels say that a class is absent;
    None if they exclude nothing.
    """

    store: SlideStore
    instance_grid: InstanceGrid
    device: torch.device
    excluded: NDArray[np.bool_] | None = None


class Method(Protocol):
    """The contract of a module of `methods/`.

    REFINEMENT names the module of `refine/` that follows by default; `none` for none.
    """

    Params: type[Any]
    """A frozen dataclass of options, derived from `MethodParams`."""

    REFINEMENT: str

    def instance_grid(self, patch_px: int, params: Any) -> InstanceGrid:
        """Geometry of the instances for patches of `patch_px` working px."""
        ...

    def build(self, classes: Classes, encoder: nn.Module, instance_grid: InstanceGrid, params: Any) -> nn.Module:
        """The untrained network, into which the weights of a fit can be loaded; constants are its buffers."""
        ...

    def fit(self, bags: Sequence[Bag], instance_grid: InstanceGrid, params: Any, context: FitContext) -> nn.Module:
        """Train a network on bags; the same seed gives the same weights."""
        ...

    def score(self, model: nn.Module, context: ScoreContext, params: Any) -> ScoreMap:
        """Scores of a whole slide.

        A method in which classes compete has to respect `context.excluded`: an excluded class must not hold back
        another. Excluded scores are set to 0 afterwards in any case.
        """
        ...

    def mask(self, scores: ScoreMap, params: Any) -> NDArray[np.uint8]:
        """Mask values of the cells of a score map: uint8 [rows, cols] (0 background, k + 1 class k, 255 ignore)."""
        ...


@runtime_checkable
class FindsObjects(Protocol):
    """What a method adds to `Method` if its masks can be cut into objects; its Params have a bool `displacement`."""

    def displacement_px(self, instance_grid: InstanceGrid) -> int:
        """Side of a cell of displacements in working px."""
        ...

    def displacements(
        self, model: nn.Module, context: ScoreContext, wanted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Displacements (y, x) to object centres, in cells, float32 [2, rows, cols], and where they are known.

        wanted: bool [rows, cols], the cells whose displacement is needed.
        """
        ...
