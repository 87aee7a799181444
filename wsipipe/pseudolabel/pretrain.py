"""Self-supervised pretraining of the encoder on the slides' own patches: VICReg (Bardes, Ponce, LeCun, ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.nn.augment import STAIN_STRENGTH, blur, dihedral, random_crop, random_dihedral, stain_jitter
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, fit, generator
from wsipipe.pseudolabel.lattice import Lattice, shrunk
from wsipipe.pseudolabel.parts.classifier import width_of
from wsipipe.runtime import Compute
from wsipipe.store import SlideStore

BATCH = 128
POOL_BYTES = 1 << 30
"""Memory for the patches that views are cut from; beyond it each slide gives an equal share of its patches."""


def vicreg_loss(a: Tensor, b: Tensor) -> Tensor:
    """25 s(a, b) + 25 (v(a) + v(b)) + c(a) + c(b) of two embeddings float [N, D]; equations 1, 3, 5 and 6.

    s: mean squared distance, over D too, as the authors' code has it (equation 5 does not divide by D). v: hinge that
    keeps each dimension's deviation at 1. c: squared off-diagonal covariance over D, which decorrelates dimensions.
    """
    n, d = a.shape
    invariance = F.mse_loss(a, b)
    variance = a.new_zeros(())
    covariance = a.new_zeros(())
    for z in (a - a.mean(0), b - b.mean(0)):
        variance = variance + F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()
        c = z.T @ z / (n - 1)
        covariance = covariance + (c.square().sum() - c.diagonal().square().sum()) / d
    return 25 * invariance + 25 * variance + covariance


def patch_pool(stores: Sequence[SlideStore], lattice: Lattice, seed: int) -> NDArray[np.uint8]:
    """Patches at the resolution of the classifier, evenly over slides: uint8 [P, 3, s, s].

    s is 1.5 inputs or more, so that two views of one patch overlap without being the same.
    """
    side_px = max(2 * lattice.seen_px * 3 // 4 // lattice.shrink * lattice.shrink, lattice.seen_px)
    each = POOL_BYTES // (4 * 3 * (side_px // lattice.shrink) ** 2) // max(1, len(stores))
    rng = np.random.default_rng(seed)
    patches = []
    for store in stores:
        windows = store.patches().windows
        for i in sorted(rng.permutation(len(windows))[:each].tolist()):
            w = windows[i]
            spare = max(0, w.width_px - side_px)
            for dy in {0, spare}:
                for dx in {0, spare}:
                    window = type(w)(w.x_px + dx, w.y_px + dy, side_px, side_px)
                    patches.append(shrunk(store.read(window), lattice.shrink).transpose(2, 0, 1))
    side = side_px // lattice.shrink
    return np.stack(patches) if patches else np.zeros((0, 3, side, side), np.uint8)


def pretrain(
    encoder: nn.Module,
    pool: NDArray[np.uint8],
    input_px: int,
    schedule: Schedule,
    compute: Compute,
) -> list[float]:
    """Train `encoder` in place on two random views of each patch of `pool`; returns the loss of every step.

    Views: a crop of 40 to 100 % of the input's area, one of the 8 symmetries of the square, stain jitter in optical
    density, a slight blur. The expander (two layers of 512) is thrown away.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(compute.seed)
        width = width_of(encoder, input_px)
        expander = nn.Sequential(nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512))
    model = nn.Sequential(encoder, expander)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = generator(compute.seed, 1, step)
        chosen = torch.randint(0, len(pool), (BATCH,), generator=g).numpy()
        x = torch.from_numpy(pool[chosen]).float() / 255
        return view(x, input_px, g), view(x, input_px, g)

    def loss(views: tuple[Tensor, Tensor]) -> Tensor:
        x = normalise(torch.cat(views).to(compute.device))
        a, b = model(x).float().chunk(2)
        return vicreg_loss(a, b)

    return fit(model, batch, loss, schedule, "pretrain", compute)


def view(x: Tensor, input_px: int, g: torch.Generator) -> Tensor:
    """One random view: float 0..1 [B, 3, S, S] -> [B, 3, input_px, input_px]."""
    x = random_crop(x, input_px, (0.4, 1.0), g)
    x = dihedral(x, random_dihedral(g, len(x)))
    return blur(stain_jitter(x, STAIN_STRENGTH, g), 0.3, g)
