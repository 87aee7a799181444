"""Whole bags through an instance classifier: the image-level constraint of CAMEL, and its selectors as networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wsipipe.nn.augment import TissueAugment, enlargement
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import generator
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.shared.mil import Rule, balanced_sample, class_pools, select, selected_loss

MOST = 64
"""Instances of a bag in a step; of a larger bag (a slide, a region) as many are drawn, and its rule sees these."""

Drawn = list[tuple[int, Tensor]]
"""Bags of a step: the index of each with its crops float 0..1 [m, 3, s, s]."""


@dataclass(frozen=True)
class WholeBags:
    """Bags that are drawn whole, `count` a step, as many positive as negative.

    labels: float [B, K] with 0, 1 or nan. rules: for each term of the loss the rule of each bag.
    """

    bags: Sequence[Bag]
    labels: Tensor
    rules: Sequence[Sequence[Rule]]
    lattice: InstanceGrid
    seed: int
    stain_jitter: float
    max_zoom: float
    count: int = 4

    def draw(self, step: int) -> Drawn:
        """Crops of the bags of a step, under random views."""
        g = generator(self.seed, 4, step)
        pools = class_pools(self.labels)
        chosen = balanced_sample(pools, -(-self.count // len(pools)), g)
        return [(b, self._crops(self.bags[b], g)) for b in chosen.tolist()]

    def _crops(self, bag: Bag, g: torch.Generator) -> Tensor:
        xy = bag.xy_px
        if len(xy) > MOST:
            xy = xy[np.sort(torch.randperm(len(xy), generator=g)[:MOST].numpy())]
        crops = torch.from_numpy(read_crops(bag.store, xy, self.lattice, bag.bounds)).float() / 255
        return TissueAugment(self.stain_jitter, enlargement(self.max_zoom))(crops, g)

    def loss(self, model: nn.Module, drawn: Drawn, on: torch.device) -> Tensor:
        """The sum over terms of the mean over bags of the loss of a bag."""
        crops = [normalise(c.to(on)) for _, c in drawn]
        rules = [[term[b] for term in self.rules] for b, _ in drawn]
        return whole_bag_loss(model, crops, [self.labels[b] for b, _ in drawn], rules)


def whole_bag_loss(
    model: nn.Module, bags: Sequence[Tensor], labels: Sequence[Tensor], rules: Sequence[Sequence[Rule]]
) -> Tensor:
    """Sum over the rules of a bag, mean over bags, of the selected instances' cross-entropy.

    bags: normalised crops float [m, 3, s, s] each; labels: [K] each; rules: those of each bag, as many for every bag.
    All instances are scored without gradient; only those selected go through `model` again with it. The two passes
    agree, and an instance depends on no other, because normalisation layers use their fixed statistics in both.
    """
    together = torch.cat(list(bags))
    ends = np.cumsum([len(b) for b in bags]).tolist()
    parts = [slice(end - len(b), end) for end, b in zip(ends, bags, strict=True)]
    with fixed_statistics(model):
        with torch.no_grad():
            logits = model(together).float()
        chosen = [
            [select(logits[part], label, rule) for rule in of_bag]
            for part, label, of_bag in zip(parts, labels, rules, strict=True)
        ]
        rows = torch.unique(
            torch.cat([i + part.start for part, c in zip(parts, chosen, strict=True) for s in c for *_, i in s])
        )
        logits = logits.index_put((rows,), model(together[rows]).float())
    losses = [selected_loss(logits[part], s) for part, c in zip(parts, chosen, strict=True) for s in c]
    return torch.stack(losses).sum() / len(bags)


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation and dropout as in scoring while the block runs; weights still learn."""
    moved = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for m in moved:
            m.training = True
