"""cMIL: selectors trained each on what its own rule picks, and the instances that they pick and agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from wsipipe.nn.train import Schedule, generator, seeded_init
from wsipipe.nn.train import fit as train
from wsipipe.pseudolabel.shared.classifier import Head
from wsipipe.pseudolabel.shared.mil import Rule, bag_loss, balanced_sample, class_pools, select
from wsipipe.runtime.device import ComputeContext


class Pick(NamedTuple):
    """An instance of a bag with the 0 or 1 that is believed of one class."""

    bag: int
    instance: int
    of_class: int
    target: int


def train_selector(
    features: Sequence[Tensor], labels: Tensor, rules: Sequence[Rule], schedule: Schedule, compute: ComputeContext
) -> Head:
    """A head trained on what its own rule selects; positive and negative bags of each class in equal numbers.

    features: float [M, D] of each bag; labels: [B, K] with 0, 1 or nan (not known); rules: that of each bag.
    """
    head = seeded_init(lambda: Head(features[0].shape[1], labels.shape[1]), compute.seed)
    head.standardise(torch.cat(list(features)))
    pools = class_pools(labels)
    share = 16 if len(features) > 64 else 4

    def draw(step: int) -> list[int]:
        return [int(b) for b in balanced_sample(pools, share, generator(compute.seed, 3, step))]

    def loss(bag_ids: list[int]) -> Tensor:
        return torch.stack([bag_loss(head(features[b]), labels[b], rules[b]) for b in bag_ids]).mean()

    train(head, draw, loss, schedule, "select", replace(compute, device=torch.device("cpu")))
    return head


def score_features(head: Head, features: Sequence[Tensor]) -> list[Tensor]:
    """Logits float [M, K] of each bag."""
    with torch.inference_mode():
        return [head(f) for f in features]


def collect(scores: Sequence[Tensor], labels: Tensor, rules: Sequence[Rule]) -> list[Pick]:
    """The instances that a selector picks by its own rule and whose predicted class is the bag's label.

    scores: the selector's logits float [M, K] of each bag.
    """
    return [
        Pick(b, i, k, y)
        for b, z in enumerate(scores)
        for k, y, picked in select(z, labels[b], rules[b])
        for i in picked.tolist()
        if (z[i, k] > 0) == bool(y)
    ]


def vetoed(picks: Sequence[Pick], scores: Sequence[Tensor]) -> list[Pick]:
    """The picks without those positives that another selector, of logits `scores` [M, K], takes for negative.

    Max-Min is satisfied by anything that varies, for the most of a bag always exceeds the least: what it picks of a
    positive bag may be any instance, with which it then agrees.
    """
    return [p for p in picks if not p.target or scores[p.bag][p.instance, p.of_class] > 0]
