"""Applies a network to the instances of whole bags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.shared.classifier import apply_in_batches
from wsipipe.runtime.device import ComputeContext

INSTANCES_PER_CALL = 1024
"""Small bags go through the network together, up to this many instances."""


def apply_to_bags(
    model: nn.Module, bags: Sequence[Bag], instance_grid: InstanceGrid, views: int, compute: ComputeContext, task: str
) -> list[Tensor]:
    """model(instances), averaged over `views` symmetries: float32 [M, ..] per bag."""
    out: list[Tensor] = []
    first = 0
    while first < len(bags):
        last = first + 1
        while last < len(bags) and sum(len(b.xy_px) for b in bags[first : last + 1]) <= INSTANCES_PER_CALL:
            last += 1
        crops = [read_crops(b.store, b.xy_px, instance_grid, b.bounds) for b in bags[first:last]]
        values = apply_in_batches(model, np.concatenate(crops), compute.device, views)
        ends = np.cumsum([len(c) for c in crops]).tolist()
        out += [values[end - len(c) : end] for end, c in zip(ends, crops, strict=True)]
        first = last
        compute.progress(task, first, len(bags))
    return out
