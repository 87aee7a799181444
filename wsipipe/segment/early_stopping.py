"""Early stopping on held-out patients, whose masks come from weak labels alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsipipe.config.options import TrainConfig
from wsipipe.nn.distributed import ProcessGroup
from wsipipe.nn.early_stopping import CHECKS, is_flat
from wsipipe.nn.encoders import normalise
from wsipipe.runtime.device import ComputeContext, autocast
from wsipipe.segment.data import Sample, find_samples
from wsipipe.segment.losses import segmentation_loss
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)

PER_SLIDE = 16
"""Windows per held-out slide, spread evenly over its patches."""

TOP = 0.1
"""A slide's score is the mean probability of this fraction of its pixels, the highest."""


class ValidationMonitor:
    """Checks a network on held-out slides `CHECKS` times; stops once `patience` checks made no progress.

    `checks` lists (step, loss, AUC): the loss against the masks, which hold no pixel label, and the slide AUC, mean
    over classes, against whether the mask holds the class (nan where all slides agree). Only checks of the second half
    count: before, the learning rate is too high for the loss to settle.
    """

    def __init__(
        self,
        model: nn.Module,
        stores: Sequence[SlideStore],
        config: TrainConfig,
        compute: ComputeContext,
        group: ProcessGroup,
    ) -> None:
        self._model, self._config, self._compute, self._group = model, config, compute, group
        self._every = max(1, config.steps // CHECKS)
        classes = len(stores[0].attributes("labels", config.masks)["classes"])
        self._slides = [_thinned(find_samples([s], config.masks, classes)) for s in stores]
        self._holds = np.array(
            [[any(k in s.values for s in slide) for k in range(1, classes + 1)] for slide in self._slides]
        )
        self.checks: list[tuple[int, float, float]] = []

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step."""
        if (step + 1) % self._every:
            return False
        loss, auc = self.look()
        self.checks.append((step + 1, loss, auc))
        settling = [c for c in self.checks if 2 * c[0] > self._config.steps]
        flat = is_flat([c[1] for c in settling], [np.nan_to_num(c[2]) for c in settling], self._config.patience)
        if flat:
            log.info(
                "step %d: no progress on held-out patients in %d checks: stopping early",
                step + 1,
                self._config.patience,
            )
        return self._group.broadcast(flat)

    @torch.inference_mode()
    def look(self) -> tuple[float, float]:
        """Loss and slide AUC on the held-out slides; the mode of the network (train or eval) is restored."""
        was, on = self._model.training, self._compute.device
        self._model.eval()
        losses, scores = [], []
        for slide in self._slides:
            x = np.stack([s.store.read(s.window) for s in slide]).transpose(0, 3, 1, 2)
            y = np.stack([s.store.labels(self._config.masks).read(s.window) for s in slide])
            with autocast(on):
                logits = self._model(normalise(torch.from_numpy(np.ascontiguousarray(x)).to(on))).float()
            losses.append(float(segmentation_loss(logits, torch.from_numpy(y).long().to(on), self._config.gce_q)))
            scores.append(_slide_scores(logits.softmax(1)))
        self._model.train(was)
        return float(np.mean(losses)), mean_auc(np.array(scores), self._holds)

    def state_dict(self) -> dict[str, Any]:
        """The checks so far."""
        return {"checks": self.checks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from there."""
        self.checks = [(int(s), float(a), float(b)) for s, a, b in state_dict["checks"]]


def _thinned(samples: list[Sample]) -> list[Sample]:
    return [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, PER_SLIDE).round().astype(int))]


def _slide_scores(p: Tensor) -> list[float]:
    """Mean of the highest `TOP` of the pixels of every named class: p float [N, C, H, W] -> K numbers."""
    pixels = p[:, 1:].movedim(1, 0).flatten(1)
    return [float(v) for v in pixels.topk(max(1, int(TOP * pixels.shape[1])), 1).values.mean(1)]


def mean_auc(scores: np.ndarray[Any, Any], holds: np.ndarray[Any, Any]) -> float:
    """Mean over the classes of the share of (with, without) pairs of slides in the right order, ties half; else nan.

    scores: float [slides, K]; holds: bool [slides, K].
    """
    found = []
    for s, h in zip(scores.T, holds.T, strict=True):
        if h.any() and not h.all():
            apart = s[h][:, None] - s[~h][None, :]
            found.append(float((apart > 0).mean() + (apart == 0).mean() / 2))
    return float(np.mean(found)) if found else float("nan")
