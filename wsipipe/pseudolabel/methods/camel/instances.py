"""Step 4: the instance set, crops with targets that come from selectors or from confident predictions."""

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
    """Targets of all instances of every bag: float32 [M, K] of 1, 0 and nan (not picked) per bag."""
    out = [torch.full((len(b.xy_px), len(b.label)), float("nan")) for b in bags]
    for b, i, k, y in picks:
        out[b][i, k] = y
    return out


def confident_targets(logits: Sequence[Tensor], labels: Tensor, confident: float) -> list[Tensor]:
    """Confident predictions that agree with the bags' labels: logits [M, K] -> targets float32 [M, K] per bag.

    1 where a class of the bag scores at least `confident`; 0 where one scores at most 1 - `confident`, and everywhere
    for a class that the bag does not hold; else nan. labels: [B, K] of 0, 1 or nan (unknown).
    """
    out = []
    for z, label in zip(logits, labels, strict=True):
        p, absent = z.sigmoid(), label == 0
        targets = torch.full(z.shape, float("nan"))
        targets[(p <= 1 - confident) | absent] = 0
        targets[(p >= confident) & ~absent] = 1
        out.append(targets)
    return out


def instance_set(
    bags: Sequence[Bag], instance_grid: InstanceGrid, targets: Sequence[Tensor], limit: int, seed: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Crops and targets of all instances with a target: uint8 [M, 3, s, s] and float [M, K].

    targets: float [M, K] of 1, 0 or nan (unknown) per bag. A class that the bag does not hold becomes 0 for all of its
    instances. Beyond `limit` instances positives are kept first, up to half of the limit.
    """
    rows = [np.flatnonzero(~t.isnan().all(1).numpy()) for t in targets]
    positive = np.concatenate([(t[i] == 1).any(1).numpy() for t, i in zip(targets, rows, strict=True)])
    if not len(positive):
        raise ConfigError(
            "the selectors agree with no label, so nothing can be learned; check the labels or raise "
            "camel.selector_steps"
        )
    if len(positive) > limit:
        kept = _thinned(positive, limit, np.random.default_rng(seed))
        parts = np.split(kept, np.cumsum([len(i) for i in rows])[:-1])
        rows = [i[part] for i, part in zip(rows, parts, strict=True)]
    crops, set_targets = [], []
    for bag, t, i in zip(bags, targets, rows, strict=True):
        if len(i):
            crops.append(read_crops(bag.store, bag.xy_px[i], instance_grid, bag.bounds))
            absent = torch.tensor([y == 0 for y in bag.label])
            set_targets.append(t[i].masked_fill(t[i].isnan() & absent, 0))
    return np.concatenate(crops), torch.cat(set_targets)


def _thinned(positive: NDArray[np.bool_], limit: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of more than `limit` instances are kept: bool [M] both."""
    ones, zeros = np.flatnonzero(positive), np.flatnonzero(~positive)
    room = min(len(zeros), max(limit - len(ones), limit // 2))
    kept = np.zeros(len(positive), bool)
    kept[rng.permutation(ones)[: limit - room]] = True
    kept[rng.permutation(zeros)[:room]] = True
    return kept
