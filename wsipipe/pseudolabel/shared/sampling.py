"""Balanced sampling by weak labels, and how many instances of a positive bag the prevalence rule selects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def class_pools(labels: Tensor) -> list[Tensor]:
    """Per class, the rows that hold it and the rows that do not, where there are any: labels [N, K] of 1, 0 or nan."""
    return [p for k in range(labels.shape[1]) for v in (1, 0) if len(p := torch.nonzero(labels[:, k] == v).ravel())]


def balanced_sample(pools: Sequence[Tensor], per_pool: int, generator: torch.Generator) -> Tensor:
    """`per_pool` members of every pool, drawn with replacement: int64 [per_pool * pools]."""
    return torch.cat([p[torch.randint(0, len(p), (per_pool,), generator=generator)] for p in pools])


def prevalence_k(count: int, ratio: float) -> int:
    """Number of instances that CAMEL2's prevalence rule selects from `count`: max(1, ceil(ratio count) - 1)."""
    exact = count * ratio
    nearest = round(exact)
    return max(1, (nearest if exact - nearest <= 1e-9 else math.ceil(exact)) - 1)
