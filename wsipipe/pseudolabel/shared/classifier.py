"""Instance classifiers: an encoder with one sigmoid a class, trained on crops with known or masked targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.nn.augment import STAIN_STRENGTH, TissueAugment, dihedral, enlargement
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, fit, generator
from wsipipe.pseudolabel.shared.mil import balanced_sample, class_pools
from wsipipe.runtime.device import ComputeContext, autocast


class Head(nn.Module):
    """Logits [B, K] of features [B, D]: standardised by fixed statistics, then linear."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.linear = nn.Linear(width, classes)

    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation from features float [N, D]."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        """Float [B, D] -> logits float [B, K]."""
        out: Tensor = self.linear((features - self.mean) / self.std)
        return out


class InstanceClassifier(nn.Module):
    """Crops (normalised) float [B, 3, s, s] -> logits float [B, K]; `shift` [K] is added, so that 0.5 is the border."""

    shift: Tensor

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Head(width, classes)
        self.register_buffer("shift", torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of independent classes: several, one or none may hold."""
        out: Tensor = self.head(self.encoder(x)) + self.shift
        return out


def apply_in_batches(model: nn.Module, crops: NDArray[np.uint8], on: torch.device, views: int = 1) -> Tensor:
    """model(crops) without gradient, averaged over `views` symmetries: uint8 [M, 3, s, s] -> float32 [M, ..]."""
    model.to(on).eval()
    parts: list[Tensor] = []
    with torch.inference_mode(), autocast(on):
        for batch in _batches(crops):
            x = normalise(batch.to(on))
            y = torch.stack([model(dihedral(x, torch.full((len(x),), v))).float() for v in range(views)])
            parts.append(y.mean(0).cpu())
    return torch.cat(parts) if parts else torch.zeros(0)


def _batches(crops: NDArray[np.uint8], size: int = 256) -> Iterator[Tensor]:
    for i in range(0, len(crops), size):
        yield torch.from_numpy(crops[i : i + size])


class Constraint(Protocol):
    """A further term of the loss, of images that it draws itself."""

    def draw(self, step: int) -> Any:
        """What the term sees at a step; called by the thread that reads."""
        ...

    def loss(self, model: nn.Module, drawn: Any, on: torch.device) -> Tensor:
        """The term, a scalar, of what was drawn."""
        ...


@dataclass(frozen=True)
class Retraining:
    """What an instance classifier is trained with: augmentation and the image-level constraint.

    L = w1 L_constrain + w2 L_retrain: `weights` are w1 and w2; `constraint` makes L_constrain, None leaves it out.
    """

    stain_jitter: float = STAIN_STRENGTH
    max_zoom: float = 1.0
    constraint: Constraint | None = None
    weights: tuple[float, float] = (1.0, 1.0)


def train_classifier(
    model: nn.Module,
    crops: NDArray[np.uint8],
    targets: Tensor,
    schedule: Schedule,
    task: str,
    compute: ComputeContext,
    batch: int = 64,
    how: Retraining = Retraining(),
) -> list[float]:
    """Binary cross-entropy a class over crops uint8 [M, 3, s, s] with targets float [M, K]; nan targets are not scored.

    Each step draws positives and negatives of every class in equal numbers. Returns the loss of every step.
    """
    pools = class_pools(targets)
    w1, w2 = how.weights
    augment = TissueAugment(how.stain_jitter, enlargement(how.max_zoom))

    def draw(step: int) -> tuple[Tensor, Tensor, Any]:
        g = generator(compute.seed, 2, step)
        chosen = balanced_sample(pools, -(-batch // len(pools)), g)
        x = torch.from_numpy(crops[chosen.numpy()]).float() / 255
        whole = how.constraint.draw(step) if how.constraint else None
        return augment(x, g), targets[chosen], whole

    def loss(item: tuple[Tensor, Tensor, Any]) -> Tensor:
        x, y = item[0].to(compute.device), item[1].to(compute.device)
        retrain = masked_bce(model(normalise(x)).float(), y)
        if how.constraint is None:
            return retrain
        return w1 * how.constraint.loss(model, item[2], compute.device) + w2 * retrain

    return fit(model, draw, loss, schedule, task, compute)


def masked_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the entries whose target is a number: float [M, K] both."""
    known = ~torch.isnan(targets)
    return F.binary_cross_entropy_with_logits(logits[known], targets[known])
