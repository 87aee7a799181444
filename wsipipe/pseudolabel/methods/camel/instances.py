"""Instance data sets: crops with the targets that selectors or the classifier itself give them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.methods.camel.selectors import Pick


def targets_from_picks(picks: Iterable[Pick], bags: Sequence[Bag]) -> list[Tensor]:
    """What picks say of the instances of every bag: float32 [M, K] of 1, 0 and nan (not known)."""
    out = [torch.full((len(b.xy_px), len(b.label)), float("nan")) for b in bags]
    for b, i, k, y in picks:
        out[b][i, k] = y
    return out


def confident_answers(logits: Sequence[Tensor], labels: Tensor, confident: float) -> list[Tensor]:
    """A classifier's answers that it is sure of, held to the bags' labels: logits [M, K] -> float32 [M, K] of each bag.

    1 where a class that the bag holds scores `confident` or more, 0 where one scores 1 - `confident` or less and
    everywhere in a bag that does not hold it, nan elsewhere. labels: [B, K] with 0, 1 or nan (not known).
    """
    out = []
    for z, label in zip(logits, labels, strict=True):
        p, absent = z.sigmoid(), label == 0
        answer = torch.full(z.shape, float("nan"))
        answer[(p <= 1 - confident) | absent] = 0
        answer[(p >= confident) & ~absent] = 1
        out.append(answer)
    return out


def instance_set(
    bags: Sequence[Bag], lattice: InstanceGrid, answers: Sequence[Tensor], limit: int, seed: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Crops of the instances of which anything is believed, with their targets: uint8 [M, 3, s, s], float [M, K].

    answers: float [M, K] of each bag, 1, 0 or nan (not known); so are the targets. A class that the bag does not hold
    is 0 for all of its instances. Beyond `limit` instances positives are kept first, up to half of it.
    """
    chosen = [np.flatnonzero(~z.isnan().all(1).numpy()) for z in answers]
    positive = np.concatenate([(z[i] == 1).any(1).numpy() for z, i in zip(answers, chosen, strict=True)])
    if not len(positive):
        raise ConfigError(
            "the selectors agree with no label: nothing to learn; check the labels or raise camel.selector_steps"
        )
    if len(positive) > limit:
        kept = _thinned(positive, limit, np.random.default_rng(seed))
        parts = np.split(kept, np.cumsum([len(i) for i in chosen])[:-1])
        chosen = [i[part] for i, part in zip(chosen, parts, strict=True)]
    crops, targets = [], []
    for bag, z, i in zip(bags, answers, chosen, strict=True):
        if len(i):
            crops.append(read_crops(bag.store, bag.xy_px[i], lattice, bag.bounds))
            absent = torch.tensor([y == 0 for y in bag.label])
            targets.append(z[i].masked_fill(z[i].isnan() & absent, 0))
    return np.concatenate(crops), torch.cat(targets)


def _thinned(positive: NDArray[np.bool_], limit: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of more than `limit` instances are kept: bool [M] both."""
    ones, zeros = np.flatnonzero(positive), np.flatnonzero(~positive)
    room = min(len(zeros), max(limit - len(ones), limit // 2))
    kept = np.zeros(len(positive), bool)
    kept[rng.permutation(ones)[: limit - room]] = True
    kept[rng.permutation(zeros)[:room]] = True
    return kept
