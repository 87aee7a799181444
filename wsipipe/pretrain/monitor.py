"""Early stopping without labels: loss and effective rank on held-out patches."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from wsipipe.nn.early_stopping import CHECKS, is_flat
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import generator, seeded
from wsipipe.pretrain.views import Pool, Views
from wsipipe.runtime.device import ComputeContext, autocast

log = logging.getLogger(__name__)

COLLAPSED = 1.5
"""Effective rank below which the features say nearly the same of every patch."""

_TOGETHER = 256


def effective_rank(features: Tensor) -> float:
    """RankMe of features [N, D]: exp of the entropy of the singular values' shares, 1..min(N, D).

    Garrido et al., ICML 2023, equation 1, after Roy & Vetterli 2007; the mean is taken out first, as a head that
    standardises its input takes it out too. 0 if all rows are alike.
    """
    z = features.double()
    s = torch.linalg.svdvals(z - z.mean(0))
    if float(s.sum()) <= 1e-9 * max(1.0, float(z.abs().max())):
        return 0.0
    p = s / s.sum()
    return float(torch.exp(torch.special.entr(p).sum()))


class EarlyStopping:
    """Checks an objective on held-out patches `CHECKS` times in `steps`; stops once `patience` checks were flat.

    `checks` lists (step, loss, effective rank). The views are the same at every check. patience 0: never stop. Only
    checks of the second half count: while the learning rate is high, the loss fluctuates around a level that it leaves
    when the rate falls, and an encoder taken from there has not settled.
    """

    def __init__(
        self, objective: nn.Module, aside: Pool, views: Views, compute: ComputeContext, steps: int, patience: int
    ) -> None:
        self._objective, self._views, self._compute = objective, views, compute
        self._steps, self._every, self._patience = steps, max(1, steps // CHECKS), patience
        self._patches = torch.from_numpy(aside.patches)
        self.checks: list[tuple[int, float, float]] = []

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step."""
        if (step + 1) % self._every or not len(self._patches):
            return False
        loss, rank = self.look()
        self.checks.append((step + 1, loss, rank))
        if rank < COLLAPSED:
            log.warning("step %d: features have nearly collapsed (effective rank %.1f)", step + 1, rank)
        settling = [c for c in self.checks if 2 * c[0] > self._steps]
        flat = is_flat([c[1] for c in settling], [c[2] for c in settling], self._patience)
        if flat:
            log.info("step %d: no progress on held-out patches in %d checks: stopping early", step + 1, self._patience)
        return flat

    def look(self) -> tuple[float, float]:
        """Loss, and effective rank of the encoder's features, on the held-out patches."""
        on, model = self._compute.device, self._objective
        model.eval()
        losses, features, sizes = [], [], []
        with torch.inference_mode(), seeded(on, self._compute.seed), autocast(on):
            for i in range(0, len(self._patches), _TOGETHER):
                x = self._patches[i : i + _TOGETHER].float() / 255
                g = generator(self._compute.seed, 4, i)
                a, b = (normalise(self._views.draw(x, g).to(on)) for _ in range(2))
                sizes.append(len(x))
                losses.append(float(model(a, b)) * len(x))
                features.append(model.encoder(a).float().cpu())  # type: ignore[operator]
        model.train()
        return sum(losses) / sum(sizes), effective_rank(torch.cat(features))

    def state_dict(self) -> dict[str, Any]:
        """The checks so far."""
        return {"checks": self.checks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from there."""
        self.checks = [(int(s), float(a), float(b)) for s, a, b in state_dict["checks"]]
