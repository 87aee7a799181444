"""Rules that pick, from the scores of a bag's instances, those that the bag's label is believed of; and their loss.

A rule maps scores float [M] of one class and the bag's label (0 or 1) to the indices of the chosen instances; their
target is the label. Ties go to the first index. Bags hold no instance without tissue (see `make_bags`), so every
score is valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Callable[[Tensor, int], Tensor]

Selected = tuple[int, int, Tensor]
"""A class, its target, and the instances (int64 [n]) that are believed to have it."""


def max_max(scores: Tensor, label: int) -> Tensor:
    """CAMEL, Max-Max: the most positive instance, whatever the label (the hardest negative of a negative bag)."""
    return scores.argmax().view(1)


def max_min(scores: Tensor, label: int) -> Tensor:
    """CAMEL, Max-Min: the most positive instance of a positive bag, the least positive of a negative one."""
    return (scores.argmax() if label else scores.argmin()).view(1)


def prevalence(scores: Tensor, label: int, ratio: float) -> Tensor:
    """CAMEL2: all instances of a negative bag; of a positive bag the top max(1, ceil(ratio M) - 1).

    A positive bag is assumed to hold at least the share `ratio` of positive instances.
    """
    if not label:
        return torch.arange(len(scores))
    return torch.sort(scores, descending=True, stable=True).indices[: prevalence_k(len(scores), ratio)]


def prevalence_k(count: int, ratio: float) -> int:
    """How many instances of a positive bag the prevalence rule trusts."""
    exact = count * ratio
    ceiling = int(-(-exact // 1)) if exact - round(exact) > 1e-9 else round(exact)
    return max(1, ceiling - 1)


def class_pools(labels: Tensor) -> list[Tensor]:
    """For each class the rows that hold it, and those that do not, if any: labels [N, K] with 0, 1 or nan."""
    return [p for k in range(labels.shape[1]) for v in (1, 0) if len(p := torch.nonzero(labels[:, k] == v).ravel())]


def balanced_sample(pools: Sequence[Tensor], share: int, generator: torch.Generator) -> Tensor:
    """`share` members of every pool, drawn with replacement: int64 [share * pools]."""
    return torch.cat([p[torch.randint(0, len(p), (share,), generator=generator)] for p in pools])


def select(scores: Tensor, label: Tensor, rule: Rule) -> list[Selected]:
    """What `rule` picks of a bag, class by class: scores [M, K], label [K] with 0, 1 or nan (not known: left out)."""
    return [
        (k, int(y), rule(scores[:, k], int(y)).to(scores.device))
        for k, y in enumerate(label.tolist())
        if not math.isnan(y)
    ]


def selected_loss(logits: Tensor, selected: Sequence[Selected]) -> Tensor:
    """Binary cross-entropy of selected instances, logits [M, K]: the mean over classes of the mean over instances."""
    losses = []
    for k, y, picked in selected:
        z = logits[picked, k]
        losses.append(F.binary_cross_entropy_with_logits(z, torch.full_like(z, float(y))))
    return torch.stack(losses).mean()


def bag_loss(logits: Tensor, label: Tensor, rule: Rule) -> Tensor:
    """Cross-entropy between a bag's label [K] and the instances that `rule` selects by logits [M, K] -> scalar.

    All other instances carry no gradient.
    """
    return selected_loss(logits, select(logits.detach(), label, rule))
