"""Step 3: training of the boundary network on windows with seeds."""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.geometry import ceil_div
from wsipipe.labels import IGNORE
from wsipipe.nn.augment import TissueAugment
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, fit, generator
from wsipipe.pseudolabel.methods.irnet.boundary import BoundaryNet
from wsipipe.pseudolabel.methods.irnet.losses import boundary_loss, displacement_losses, pair_sets
from wsipipe.pseudolabel.methods.irnet.params import Params
from wsipipe.pseudolabel.shared.affinity import affinities, padded
from wsipipe.pseudolabel.shared.sampling import balanced_sample
from wsipipe.pseudolabel.shared.windows import WINDOWS_PER_CALL
from wsipipe.runtime.device import ComputeContext, autocast

log = logging.getLogger(__name__)


def train_boundary(
    net: BoundaryNet, rgb: NDArray[np.uint8], seeds: Tensor, params: Params, compute: ComputeContext
) -> list[float]:
    """Train the branches on windows uint8 [M, 3, s, s] with seeds uint8 [M, s / 4, s / 4]; the loss of every step.

    Half of the windows of a step, if there are any such, hold seeds of at least two kinds.
    """
    pools, radius, augment = seed_pools(seeds), params.pair_radius, TissueAugment()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        g = generator(compute.seed, 3, step)
        rows = balanced_sample(pools, ceil_div(params.boundary_batch, len(pools)), g)
        x = torch.from_numpy(rgb[rows.numpy()]).float() / 255
        x, labels = augment.with_maps(x, seeds[rows].unsqueeze(1), g)
        return x, labels.squeeze(1)

    def loss(item: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = (v.to(compute.device) for v in item)
        logits, displacement = net(normalise(x))
        pairs = pair_sets(padded(labels, radius, IGNORE), radius)
        a = affinities(padded(torch.sigmoid(logits.float()), radius, 1.0), radius)
        total = boundary_loss(a, pairs, by_class=not params.as_published)
        if displacement is not None:
            d = F.pad(displacement.float(), (radius - 1, radius - 1, 0, radius - 1))
            total = total + sum(displacement_losses(d, pairs, radius))
        return total / 2

    losses = fit(net, draw, loss, Schedule(params.boundary_steps, params.boundary_lr), "boundaries", compute)
    if net.displacement_branch is not None:
        net.displacement_branch.mean.copy_(mean_displacement(net, rgb, compute.device))
    return losses


def seed_pools(seeds: Tensor) -> list[Tensor]:
    """Windows to draw from in equal numbers, int64 [n] each: those with seeds of two or more kinds, if any, and all."""
    kinds = torch.stack(
        [(seeds == v).flatten(1).any(1) for v in torch.unique(seeds[seeds != IGNORE])] or [seeds[:, 0, 0] < 0]
    )
    mixed = torch.nonzero(kinds.sum(0) >= 2).ravel()
    every = torch.arange(len(seeds))
    if not len(mixed):
        log.warning("irnet: no window holds seeds of two kinds, so no boundary can be learned; lower irnet.seed_fg")
        return [every]
    return [mixed, every]


def mean_displacement(net: BoundaryNet, rgb: NDArray[np.uint8], device: torch.device) -> Tensor:
    """The mean displacement over windows uint8 [M, 3, s, s], before any mean is subtracted: float [2]."""
    total = torch.zeros(2, device=device)
    for i in range(0, len(rgb), WINDOWS_PER_CALL):
        some = torch.from_numpy(rgb[i : i + WINDOWS_PER_CALL])
        with torch.inference_mode(), autocast(device):
            total += net(normalise(some.to(device)))[1].float().mean((2, 3)).sum(0)
    return total / len(rgb)
