"""Training and applying a classifier of crops with independent classes; targets may be unknown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.geometry import ceil_div
from wsipipe.nn.augment import STAIN_STRENGTH, TissueAugment, dihedral, enlargement
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, fit, generator
from wsipipe.pseudolabel.shared.sampling import balanced_sample, class_pools
from wsipipe.runtime.device import ComputeContext, autocast


def apply_in_batches(model: nn.Module, crops: NDArray[np.uint8], device: torch.device, views: int = 1) -> Tensor:
    """model(crops) without gradient, averaged over `views` symmetries: uint8 [M, 3, s, s] -> float32 [M, ..]."""
    model.to(device).eval()
    parts: list[Tensor] = []
    with torch.inference_mode(), autocast(device):
        for batch in _batches(crops):
            x = normalise(batch.to(device))
            y = torch.stack([model(dihedral(x, torch.full((len(x),), v))).float() for v in range(views)])
            parts.append(y.mean(0).cpu())
    return torch.cat(parts) if parts else torch.zeros(0)


def _batches(crops: NDArray[np.uint8], size: int = 256) -> Iterator[Tensor]:
    for i in range(0, len(crops), size):
        yield torch.from_numpy(crops[i : i + size])


class Constraint(Protocol):
    """A further term of the loss, on images that it draws itself."""

    def draw(self, step: int) -> Any:
        """The input of the term at a step; called in the reading thread."""
        ...

    def loss(self, model: nn.Module, drawn: Any, device: torch.device) -> Tensor:
        """The term, a scalar, for a drawn input."""
        ...


@dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier is trained: batch size, augmentation and an additional constraint.

    L = w1 L_constrain + w2 L_retrain: `weights` are w1 and w2; `constraint` gives L_constrain, None leaves it out.
    """

    batch: int = 64
    stain_jitter: float = STAIN_STRENGTH
    max_zoom: float = 1.0
    constraint: Constraint | None = None
    weights: tuple[float, float] = (1.0, 1.0)


def train_classifier(
    model: nn.Module,
    crops: NDArray[np.uint8],
    targets: Tensor,
    schedule: Schedule,
    training: ClassifierTraining,
    task: str,
    compute: ComputeContext,
) -> list[float]:
    """Minimise binary cross-entropy per class on crops uint8 [M, 3, s, s]; returns the loss of every step.

    targets: float [M, K] of 1, 0 or nan (unknown: no loss). Each step draws as many positives as negatives per class.
    """
    pools = class_pools(targets)
    per_pool = ceil_div(training.batch, len(pools))
    augment = TissueAugment(training.stain_jitter, enlargement(training.max_zoom))
    w1, w2 = training.weights

    def draw(step: int) -> tuple[Tensor, Tensor, Any]:
        g = generator(compute.seed, 2, step)
        rows = balanced_sample(pools, per_pool, g)
        x = torch.from_numpy(crops[rows.numpy()]).float() / 255
        constrained = training.constraint.draw(step) if training.constraint else None
        return augment(x, g), targets[rows], constrained

    def loss(item: tuple[Tensor, Tensor, Any]) -> Tensor:
        x, y = item[0].to(compute.device), item[1].to(compute.device)
        retrain = masked_bce(model(normalise(x)).float(), y)
        if training.constraint is None:
            return retrain
        return w1 * training.constraint.loss(model, item[2], compute.device) + w2 * retrain

    return fit(model, draw, loss, schedule, task, compute)


def masked_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the entries whose target is not nan: float [M, K] both -> scalar."""
    known = ~torch.isnan(targets)
    return F.binary_cross_entropy_with_logits(logits[known], targets[known])
