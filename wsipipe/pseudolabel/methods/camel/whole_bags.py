"""Whole bags through an instance classifier: the image-level constraint, and selectors that are networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wsipipe.geometry import ceil_div
from wsipipe.nn.augment import TissueAugment, enlargement
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import generator
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.methods.camel.rules import SelectionRule, select, selected_loss
from wsipipe.pseudolabel.shared.evaluation_mode import evaluation_mode
from wsipipe.pseudolabel.shared.sampling import balanced_sample, class_pools

MAX_INSTANCES = 64
"""Most instances of a bag per step; a larger bag (slide, region) gives as many random ones to its rule."""

DrawnBags = list[tuple[int, Tensor]]
"""The bags of a step: index and crops, float 0..1 [m, 3, s, s]."""


@dataclass(frozen=True)
class WholeBags:
    """Bags that are drawn whole, `count` per step, as many positive as negative.

    labels: float [B, K] of 0, 1 or nan (unknown). rules: per term of the loss, the rule of each bag.
    """

    bags: Sequence[Bag]
    labels: Tensor
    rules: Sequence[Sequence[SelectionRule]]
    instance_grid: InstanceGrid
    seed: int
    stain_jitter: float
    max_zoom: float
    count: int = 4

    def draw(self, step: int) -> DrawnBags:
        """The bags of a step under random views."""
        g = generator(self.seed, 4, step)
        pools = class_pools(self.labels)
        drawn = balanced_sample(pools, ceil_div(self.count, len(pools)), g)
        return [(b, self._crops(self.bags[b], g)) for b in drawn.tolist()]

    def _crops(self, bag: Bag, g: torch.Generator) -> Tensor:
        xy = bag.xy_px
        if len(xy) > MAX_INSTANCES:
            xy = xy[np.sort(torch.randperm(len(xy), generator=g)[:MAX_INSTANCES].numpy())]
        crops = torch.from_numpy(read_crops(bag.store, xy, self.instance_grid, bag.bounds)).float() / 255
        return TissueAugment(self.stain_jitter, enlargement(self.max_zoom))(crops, g)

    def loss(self, model: nn.Module, drawn: DrawnBags, device: torch.device) -> Tensor:
        """The sum over terms of the mean loss of the drawn bags."""
        crops = [normalise(c.to(device)) for _, c in drawn]
        rules = [[term[b] for term in self.rules] for b, _ in drawn]
        return whole_bag_loss(model, crops, [self.labels[b] for b, _ in drawn], rules)


def whole_bag_loss(
    model: nn.Module, bags: Sequence[Tensor], labels: Sequence[Tensor], rules: Sequence[Sequence[SelectionRule]]
) -> Tensor:
    """Cross-entropy of the selected instances: sum over the rules of a bag, mean over bags.

    bags: normalised crops float [m, 3, s, s] each. labels: [K] each. rules: those of each bag, as many for every bag.
    All instances are scored without gradient; only the selected ones pass through `model` again with it. Both passes
    use fixed normalisation statistics, so they agree, and no instance depends on another.
    """
    together = torch.cat(list(bags))
    ends = np.cumsum([len(b) for b in bags]).tolist()
    parts = [slice(end - len(b), end) for end, b in zip(ends, bags, strict=True)]
    with evaluation_mode(model):
        with torch.no_grad():
            logits = model(together).float()
        selections = [
            [select(logits[part], label, rule) for rule in of_bag]
            for part, label, of_bag in zip(parts, labels, rules, strict=True)
        ]
        rows = torch.unique(
            torch.cat([i + part.start for part, c in zip(parts, selections, strict=True) for s in c for *_, i in s])
        )
        logits = logits.index_put((rows,), model(together[rows]).float())
    losses = [selected_loss(logits[part], s) for part, c in zip(parts, selections, strict=True) for s in c]
    return torch.stack(losses).sum() / len(bags)
