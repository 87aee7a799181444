"""How a segmentation network learns from masks: loss, self-training rounds and early stopping."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from wsipipe.config.options import TrainConfig
from wsipipe.errors import check
from wsipipe.nn.distributed import ProcessGroup
from wsipipe.nn.ema import WeightEMA
from wsipipe.nn.encoders import normalise
from wsipipe.nn.train import Schedule, TrainHooks, fit
from wsipipe.nn.training_state import TrainingState
from wsipipe.runtime.device import ComputeContext, compiled
from wsipipe.segment.curves import Curves
from wsipipe.segment.data import Batch, Batches, Variation, find_samples
from wsipipe.segment.early_stopping import ValidationMonitor
from wsipipe.segment.losses import corrected_by_teacher, segmentation_loss
from wsipipe.segment.slides import held_out
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)


def learn(
    model: nn.Module,
    stores: Sequence[SlideStore],
    config: TrainConfig,
    compute: ComputeContext,
    group: ProcessGroup,
    state: TrainingState,
) -> nn.Module:
    """Train `model` on `labels/<config.masks>` of the stores; returns the final network, in evaluation mode.

    That is the moving average of the weights, if there is one. Training curves go into the folder of `state`.
    """
    check(config.batch % group.size == 0, f"segment.batch: {config.batch} does not divide among {group.size} processes")
    own, aside = held_out(stores, config.masks, config.validation, compute.seed)
    classes = len(own[0].attributes("labels", config.masks)["classes"])
    samples = find_samples(own, config.masks, classes)
    log.info("training on %d patches of %d slides, labels/%s", len(samples), len(own), config.masks)
    how = Variation(max_zoom=config.max_zoom, mosaic_prob=config.mosaic_prob, border_px=config.border_px)
    batches = Batches(samples, config.masks, config.batch, compute.seed, how)
    average = WeightEMA(model, round_ends(config.steps, config.self_training_rounds)) if config.ema else None
    monitor = ValidationMonitor(average.model if average else model, aside, config, compute, group) if aside else None
    compiled(model, compute.device)
    step = _Step(group.distribute(model), average, config, compute.device)
    schedule = Schedule(config.steps, config.lr)
    with Curves(state.path.parent, schedule, config.batch, config.tensorboard and group.is_main) as curves:
        hooks = TrainHooks(state, monitor, average, curves.record, Batch.split, config.batch)
        draw = partial(batches, on=compute.device, only=group.share)
        losses = fit(model, draw, step, schedule, "train", compute, hooks)
        if group.is_main:
            curves.write(losses, monitor.checks if monitor else [])
    return average.model if average else model


def round_ends(steps: int, rounds: int) -> list[int]:
    """The final step of every round except the last; `rounds` + 1 rounds have equal length."""
    return [steps * (r + 1) // (rounds + 1) - 1 for r in range(rounds)]


class _Step:
    """The loss of a batch; once there is a teacher, it corrects the masks."""

    def __init__(self, model: nn.Module, average: WeightEMA | None, config: TrainConfig, on: torch.device) -> None:
        self._model, self._average, self._config, self._on = model, average, config, on

    def __call__(self, batch: Batch) -> Tensor:
        x, mask = normalise(batch.rgb), batch.mask
        teacher = self._average.teacher if self._average else None
        if teacher is not None:
            with torch.no_grad():
                p = teacher(x).float().softmax(1)
            mask = corrected_by_teacher(mask, p, batch.allowed, batch.valid, self._config.teacher_threshold)
        return segmentation_loss(self._model(x).float(), mask, self._config.gce_q)
