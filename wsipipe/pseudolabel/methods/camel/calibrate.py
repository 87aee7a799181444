"""Thresholds of classes, estimated from weak labels alone.

The scores of negative bags show what the absence of a class looks like. Those of positive bags are a mixture of that
and of the class itself, P = (1 - share) N + share T. The scores must come from a network that was not trained on the
scored bags, or negative bags look better than they are: see `two_folds`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.pseudolabel.bags import Bag

MIN_MASS = 0.3
"""Least fraction of negative instances below a score for its ratio to count in the estimate of the mixture."""


def two_folds(bags: Sequence[Bag], labels: Tensor, seed: int) -> list[list[int]]:
    """Two halves of the bags, indices, each with bags with and without every class; [] if there are none.

    Bags of one patient stay together if possible, else those of one slide, which share its stain; else bags are split
    one by one. labels: [B, K].
    """
    rng = np.random.default_rng(seed)
    slides = [b.store.slide_id for b in bags]
    patients = [b.patient or s for b, s in zip(bags, slides, strict=True)]
    for key in (patients, slides, [f"{i}" for i in range(len(bags))]):
        groups: dict[str, list[int]] = {}
        for i, k in enumerate(key):
            groups.setdefault(k, []).append(i)
        by_label: dict[tuple[float, ...], list[list[int]]] = {}
        for group in groups.values():
            by_label.setdefault(tuple(labels[group].float().mean(0).tolist()), []).append(group)
        parts: list[list[int]] = [[], []]
        for alike in by_label.values():
            for j in rng.permutation(len(alike)):
                min(parts, key=len).extend(alike[j])
        if all(set(labels[p, k].tolist()) >= {0, 1} for p in parts for k in range(labels.shape[1]) if p) and all(parts):
            return [sorted(p) for p in parts]
    return []


def mixture_share(negative: NDArray[np.float64], positive: NDArray[np.float64], least: float) -> float:
    """Fraction of the class among instances of positive bags, from scores [N] of negative and [P] of positive bags.

    1 - the least ratio of P(score <= t) to N(score <= t), at least `least`: below the scores of the class, positive
    bags look like negative bags, thinned by the class (mixture proportion estimation, Blanchard et al. 2010).
    """
    t = np.quantile(negative, np.linspace(MIN_MASS, 1, 200))
    below_n = np.searchsorted(np.sort(negative), t, "right") / len(negative)
    below_p = np.searchsorted(np.sort(positive), t, "right") / len(positive)
    return float(np.clip(1 - (below_p / below_n).min(), least, 1))


def expected_dice(
    negative: NDArray[np.float64], positive: NDArray[np.float64], share: float, t: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Expected Dice of thresholds `t` over all bags, if the fraction `share` of positive bags' instances is positive.

    With P and N the fractions of instances above t: hits = P - (1 - share) N; Dice = 2 hits / (P + r N + share), where
    r is the number of instances in negative bags divided by that in positive bags.
    """
    over_n = 1 - np.searchsorted(np.sort(negative), t, "left") / len(negative)
    over_p = 1 - np.searchsorted(np.sort(positive), t, "left") / len(positive)
    hits = np.clip(over_p - (1 - share) * over_n, 0, np.minimum(share, over_p))
    return np.asarray(2 * hits / (over_p + len(negative) / len(positive) * over_n + share))


def best_threshold(negative: Tensor, positive: Tensor, least: float) -> float:
    """The threshold with the highest expected Dice, from scores float64 [N] and [P] of negative and positive bags."""
    n, p = negative.numpy(), positive.numpy()
    t = np.unique(np.quantile(p, np.linspace(0, 1, 501)))
    dice = expected_dice(n, p, mixture_share(n, p, least), t)
    return float(t[int(dice.argmax())])


def threshold_shifts(logits: Sequence[Tensor], labels: Tensor, least: float) -> Tensor:
    """What to add to the logits of each class to move its threshold to 0: logits [M, K] per bag -> float [K]."""
    pairs = [[_of_bags(logits, labels, k, value) for value in (0, 1)] for k in range(labels.shape[1])]
    return torch.tensor([-best_threshold(negative, positive, least) for negative, positive in pairs])


def matching_shifts(logits: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor) -> Tensor:
    """What to add to `logits` so that as many instances of positive bags exceed 0 as those of `teacher`: float [K]."""
    out = []
    for k in range(labels.shape[1]):
        own, wanted = (_of_bags(values, labels, k, 1) for values in (logits, teacher))
        out.append(-float(np.quantile(own.numpy(), 1 - float((wanted > 0).double().mean()))))
    return torch.tensor(out)


def _of_bags(logits: Sequence[Tensor], labels: Tensor, k: int, value: int) -> Tensor:
    """Logits of class k of all instances of the bags that hold it (value 1) or do not (0): float64 [M]."""
    return torch.cat([z[:, k] for z, y in zip(logits, labels[:, k].tolist(), strict=True) if y == value]).double()
