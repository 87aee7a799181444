"""Instance data sets: crops with the answers that are believed of them; and a network applied to whole bags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.lattice import Lattice, read_crops
from wsipipe.pseudolabel.parts.classifier import apply_in_batches
from wsipipe.pseudolabel.parts.selectors import Pick
from wsipipe.runtime import Compute

TOGETHER = 1024
"""Instances of small bags that go through a network in one call."""


def apply_to_bags(
    model: nn.Module, bags: Sequence[Bag], lattice: Lattice, views: int, compute: Compute, task: str
) -> list[Tensor]:
    """model(instances) of every bag: float32 [M, ..] each; small bags go through the network together."""
    out: list[Tensor] = []
    first = 0
    while first < len(bags):
        last = first + 1
        while last < len(bags) and sum(len(b.xy_px) for b in bags[first : last + 1]) <= TOGETHER:
            last += 1
        crops = [read_crops(b.store, b.xy_px, lattice, b.bounds) for b in bags[first:last]]
        values = apply_in_batches(model, np.concatenate(crops), compute.device, views)
        ends = np.cumsum([len(c) for c in crops]).tolist()
        out += [values[end - len(c) : end] for end, c in zip(ends, crops, strict=True)]
        first = last
        compute.progress(task, first, len(bags))
    return out


def instance_set(
    bags: Sequence[Bag], lattice: Lattice, picks: Sequence[Pick], limit: int, seed: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Crops of the picked instances with their targets: uint8 [M, 3, s, s], float [M, K] (nan: not known).

    A class that the bag does not hold is 0 for all of its instances; one that it holds is known only where picked.
    Beyond `limit` instances positives are kept first, up to half of it.
    """
    if not picks:
        raise ConfigError(
            "the selectors agree with no label: nothing to learn; check the labels or raise camel.selector_steps"
        )
    wanted: dict[tuple[int, int], dict[int, int]] = {}
    for b, i, k, y in picks:
        wanted.setdefault((b, i), {})[k] = y
    keys = sorted(wanted)
    if len(keys) > limit:
        positive = [k for k in keys if any(wanted[k].values())]
        negative = [k for k in keys if not any(wanted[k].values())]
        rng = np.random.default_rng(seed)
        room = min(len(negative), max(limit - len(positive), limit // 2))
        some, keep = rng.permutation(len(positive))[: limit - room], rng.permutation(len(negative))[:room]
        keys = sorted([*(positive[i] for i in some), *(negative[i] for i in keep)])
    of_bag: dict[int, list[int]] = {}
    for b, i in keys:
        of_bag.setdefault(b, []).append(i)
    crops, targets = [], []
    for b, chosen in of_bag.items():
        bag = bags[b]
        crops.append(read_crops(bag.store, bag.xy_px[chosen], lattice, bag.bounds))
        for i in chosen:
            known = wanted[(b, i)]
            targets.append(
                [float(known[k]) if k in known else (0.0 if not y else float("nan")) for k, y in enumerate(bag.label)]
            )
    return np.concatenate(crops), torch.tensor(targets)


def confident_picks(logits: Sequence[Tensor], labels: Tensor, confident: float) -> list[Pick]:
    """A classifier's answers that it is sure of, held to the bags' labels: logits float [M, K] of each bag.

    1 where a class that the bag holds scores `confident` or more, 0 where one scores 1 - `confident` or less and
    everywhere in a bag that does not hold it.
    """
    picks = []
    for b, z in enumerate(logits):
        p = z.sigmoid()
        for k, y in enumerate(labels[b].tolist()):
            one = (p[:, k] >= confident) & bool(y)
            zero = (p[:, k] <= 1 - confident) | (not y)
            picks += [Pick(b, i, k, 1) for i in torch.nonzero(one).ravel().tolist()]
            picks += [Pick(b, i, k, 0) for i in torch.nonzero(zero & ~one).ravel().tolist()]
    return picks
