"""Objectives: an encoder with the heads, targets and loss of a method; only the encoder is saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.pretrain.losses import byol_loss, dino_loss, simclr_loss, vicreg_loss


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers between `widths`; batch normalisation and ReLU after all but the last."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class Joint(nn.Module):
    """VICReg and SimCLR: both views through one encoder and one head that is discarded."""

    def __init__(self, encoder: nn.Module, head: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.head, self._loss = encoder, head, loss

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Loss of two views (normalised) float [N, 3, s, s]."""
        za, zb = self.head(self.encoder(torch.cat([a, b]))).float().chunk(2)
        return self._loss(za, zb)


class _WithTarget(nn.Module):
    """A network and its moving average, which follows at the start of every step but the first.

    target <- m target + (1 - m) online; m rises from `momentum` to 1 as a cosine over `steps`.
    """

    step: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Module, momentum: float, steps: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.target = copy.deepcopy(nn.Sequential(encoder, head)).requires_grad_(False)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._momentum, self._steps = momentum, steps

    @torch.no_grad()
    def follow(self) -> None:
        """Take one step of the moving average; buffers (batch statistics) are the target's own."""
        done = int(self.step)
        if done:
            m = 1 - (1 - self._momentum) * (math.cos(math.pi * min(1, done / self._steps)) + 1) / 2
            for p, q in zip(
                self.target.parameters(), chain(self.encoder.parameters(), self.head.parameters()), strict=True
            ):
                p.lerp_(q.to(p.dtype), 1 - m)
        self.step += 1


class Byol(_WithTarget):
    """BYOL: the online network predicts what its moving average makes of the other view, both ways."""

    def __init__(self, encoder: nn.Module, width: int, steps: int) -> None:
        super().__init__(encoder, mlp(width, 512, 128), 0.99, steps)
        self.predictor = mlp(128, 512, 128)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Loss of two views (normalised) float [N, 3, s, s]."""
        if self.training:
            self.follow()
        x = torch.cat([a, b])
        qa, qb = self.predictor(self.head(self.encoder(x))).float().chunk(2)
        with torch.no_grad():
            ta, tb = self.target(x).float().chunk(2)
        return byol_loss(qa, tb) + byol_loss(qb, ta)


class _Prototypes(nn.Module):
    """DINO's head: a small network, unit length, then the cosines to `count` prototypes: float [N, D] -> [N, count]."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 128))
        self.prototypes = nn.Parameter(torch.randn(count, 128))

    def forward(self, x: Tensor) -> Tensor:
        """Cosines in -1..1."""
        return F.normalize(self.body(x), dim=1) @ F.normalize(self.prototypes, dim=1).T


class Dino(_WithTarget):
    """DINO on two whole views (no small crops): the student agrees with its moving average, the teacher.

    The teacher's logits are centred by a moving average of theirs (equation 4), so that no prototype takes all.
    """

    centre: Tensor

    def __init__(self, encoder: nn.Module, width: int, steps: int, prototypes: int = 1024) -> None:
        super().__init__(encoder, _Prototypes(width, prototypes), 0.996, steps)
        self.register_buffer("centre", torch.zeros(prototypes))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Loss of two views (normalised) float [N, 3, s, s]."""
        if self.training:
            self.follow()
        x = torch.cat([a, b])
        sa, sb = self.head(self.encoder(x)).float().chunk(2)
        with torch.no_grad():
            logits = self.target(x).float()
            ta, tb = logits.chunk(2)
        loss = (dino_loss(sa, tb, self.centre) + dino_loss(sb, ta, self.centre)) / 2
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * logits.mean(0)
        return loss


def objective(method: str, encoder: nn.Module, width: int, steps: int) -> nn.Module:
    """The module (view, view) -> loss of a method; its `encoder` is `encoder`, of `width` features."""
    if method == "vicreg":
        return Joint(encoder, mlp(width, 512, 512), vicreg_loss)
    if method == "simclr":
        return Joint(encoder, mlp(width, 512, 128), simclr_loss)
    return Byol(encoder, width, steps) if method == "byol" else Dino(encoder, width, steps)
