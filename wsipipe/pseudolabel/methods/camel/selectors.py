"""cMIL, steps 2 and 3: selectors, each trained on what its own rule selects, and the instances that they pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from wsipipe.nn.train import Schedule, generator, seeded_init
from wsipipe.nn.train import fit as train
from wsipipe.pseudolabel.methods.camel.network import Head
from wsipipe.pseudolabel.methods.camel.rules import SelectionRule, bag_loss, select
from wsipipe.pseudolabel.shared.sampling import balanced_sample, class_pools
from wsipipe.runtime.device import ComputeContext


class Pick(NamedTuple):
    """An instance of a bag with its target, 0 or 1, for one class."""

    bag: int
    instance: int
    of_class: int
    target: int


def train_selector(
    features: Sequence[Tensor],
    labels: Tensor,
    rules: Sequence[SelectionRule],
    schedule: Schedule,
    compute: ComputeContext,
) -> Head:
    """A head trained on what its own rule selects; each step sees as many positive as negative bags per class.

    features: float [M, D] per bag. labels: [B, K] of 0, 1 or nan (unknown). rules: one per bag.
    """
    head = seeded_init(lambda: Head(features[0].shape[1], labels.shape[1]), compute.seed)
    head.standardise(torch.cat(list(features)))
    pools = class_pools(labels)
    per_pool = 16 if len(features) > 64 else 4

    def draw(step: int) -> list[int]:
        return [int(b) for b in balanced_sample(pools, per_pool, generator(compute.seed, 3, step))]

    def loss(bag_ids: list[int]) -> Tensor:
        return torch.stack([bag_loss(head(features[b]), labels[b], rules[b]) for b in bag_ids]).mean()

    train(head, draw, loss, schedule, "select", replace(compute, device=torch.device("cpu")))
    return head


def score_features(head: Head, features: Sequence[Tensor]) -> list[Tensor]:
    """Logits float [M, K] per bag."""
    with torch.inference_mode():
        return [head(f) for f in features]


def collect_picks(logits: Sequence[Tensor], labels: Tensor, rules: Sequence[SelectionRule]) -> list[Pick]:
    """The instances that a selector selects by its own rule and whose predicted class is the bag's label.

    logits: those of the selector, float [M, K] per bag.
    """
    return [
        Pick(b, i, k, y)
        for b, z in enumerate(logits)
        for k, y, selected in select(z, labels[b], rules[b])
        for i in selected.tolist()
        if (z[i, k] > 0) == bool(y)
    ]


def drop_vetoed(picks: Sequence[Pick], logits: Sequence[Tensor]) -> list[Pick]:
    """The picks without positives that another selector, with `logits` float [M, K] per bag, calls negative.

    Anything that varies satisfies Max-Min, since the highest score of a bag always exceeds the lowest. Its pick of a
    positive bag may be any instance, and it agrees with itself.
    """
    return [p for p in picks if not p.target or logits[p.bag][p.instance, p.of_class] > 0]
