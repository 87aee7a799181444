"""Selection rules of CAMEL and CAMEL2, and the loss of a bag over the instances that its rule selects.

A rule maps the scores of a bag's instances for one class, float [M], and the bag's label (0 or 1) to the indices of the
selected instances; their target is the label. Ties go to the first index. Bags hold only instances with tissue (see
`make_bags`), so every score is valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.pseudolabel.shared.sampling import prevalence_k

SelectionRule = Callable[[Tensor, int], Tensor]
"""Scores float [M] and label 0 or 1 -> indices int64 [n]."""

Selection = tuple[int, int, Tensor]
"""A class, its target, and the selected instances, int64 [n]."""


def max_max(scores: Tensor, label: int) -> Tensor:
    """CAMEL, Max-Max: the highest instance, whatever the label (the hardest negative of a negative bag)."""
    return scores.argmax().view(1)


def max_min(scores: Tensor, label: int) -> Tensor:
    """CAMEL, Max-Min: the highest instance of a positive bag, the lowest of a negative bag."""
    return (scores.argmax() if label else scores.argmin()).view(1)


def prevalence(scores: Tensor, label: int, ratio: float) -> Tensor:
    """CAMEL2: all instances of a negative bag; the highest max(1, ceil(ratio M) - 1) of a positive bag.

    A positive bag is assumed to hold at least the fraction `ratio` of positive instances.
    """
    if not label:
        return torch.arange(len(scores))
    return torch.sort(scores, descending=True, stable=True).indices[: prevalence_k(len(scores), ratio)]


def select(scores: Tensor, label: Tensor, rule: SelectionRule) -> list[Selection]:
    """What `rule` selects from a bag, per class: scores [M, K], label [K] of 0, 1 or nan (unknown: nothing)."""
    return [
        (k, int(y), rule(scores[:, k], int(y)).to(scores.device))
        for k, y in enumerate(label.tolist())
        if not math.isnan(y)
    ]


def selected_loss(logits: Tensor, selected: Sequence[Selection]) -> Tensor:
    """Binary cross-entropy of selected instances, logits [M, K]: mean over classes of the mean over instances."""
    losses = []
    for k, y, instances in selected:
        z = logits[instances, k]
        losses.append(F.binary_cross_entropy_with_logits(z, torch.full_like(z, float(y))))
    return torch.stack(losses).mean()


def bag_loss(logits: Tensor, label: Tensor, rule: SelectionRule) -> Tensor:
    """Cross-entropy between a bag's label [K] and the instances that `rule` selects by logits [M, K] -> scalar.

    All other instances get no gradient.
    """
    return selected_loss(logits, select(logits.detach(), label, rule))
