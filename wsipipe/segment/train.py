"""Train a segmentation network on `labels/<name>` of the training stores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from wsipipe.config.options import TrainConfig, fitted_with
from wsipipe.errors import CheckpointError, ConfigError, other_inputs
from wsipipe.nn.checkpoint import Checkpoint, maker_of, read_checkpoint, weights_digest, weights_file
from wsipipe.nn.distributed import join_group
from wsipipe.nn.encoders import Statistics, chosen_encoder, expect, load_weights
from wsipipe.nn.segmenters import create_segmenter, encoder_of
from wsipipe.nn.train import seeded_init
from wsipipe.nn.training_state import KEEP_S, TrainingState
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.digest import digest
from wsipipe.segment.learn import learn
from wsipipe.segment.model import check_side
from wsipipe.segment.slides import training_stores
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)


def train(stores: Sequence[SlideStore], config: TrainConfig, context: RunContext) -> Path:
    """Train and save `runs/<name>/model.*`; returns the path of its JSON. The same inputs are not trained twice.

    A killed training resumes from its last saved state, to the same weights. Under torchrun the processes share each
    batch, and the main process writes. If a loss is not finite, the last good weights are saved as `last-good`, and
    CheckpointError says so.
    """
    chosen = training_stores(stores, config)
    check_side(chosen[0].grid.patch_px)
    classes = _classes(chosen, config.masks)
    folder = context.runs / (config.name or config.architecture)
    encoder, weights = chosen_encoder(config.encoder, config.weights)
    key = digest(
        [(s.digest, s.attributes("labels", config.masks)["digest"]) for s in chosen],
        fitted_with(config),
        context.run.seed,
        weights_digest(weights),
    )
    path = folder / "model.json"
    if path.exists():
        if read_checkpoint(path).digest == key:
            log.info("%s: trained before on the same masks", path)
            return path
        if not context.overwrite:
            raise CheckpointError(other_inputs(path))
    compute = context.compute()
    group = join_group(compute.device)
    model = seeded_init(lambda: create_segmenter(config.architecture, encoder, len(classes) + 1), compute.seed)
    statistics = _start_from(model, weights, _fit_of(context.runs / config.masks, encoder))
    model.to(compute.device).to(memory_format=torch.channels_last)
    checkpoint = Checkpoint(
        network=config.architecture,
        encoder=encoder,
        classes=classes,
        mpp=chosen[0].grid.mean_mpp,
        patch_px=chosen[0].grid.patch_px,
        digest=key,
        mean=statistics.mean,
        std=statistics.std,
        settings=asdict(config),
        normalise_stain=chosen[0].is_normalised,
    )
    state = TrainingState(folder / "training.state", key, KEEP_S, writes=group.is_main)
    try:
        learnt = learn(model, chosen, config, compute, group, state)
    except CheckpointError as error:
        if group.is_main:
            saved = checkpoint.save(folder, model, "last-good")
            raise CheckpointError(f"{error}; the last good weights are in {saved}") from None
        raise
    if group.is_main:
        checkpoint.save(folder, learnt)
        state.clear()
    group.barrier()
    return path


def _classes(stores: Sequence[SlideStore], labels: str) -> tuple[str, ...]:
    found = {tuple(s.attributes("labels", labels)["classes"]) for s in stores}
    if len(found) > 1:
        raise ConfigError(f"labels/{labels} names different classes in different stores: {sorted(found)}")
    return found.pop()


def _fit_of(folder: Path, encoder: str) -> Path | None:
    """The fit that made the masks, if its encoder is the same and its weights exist."""
    made = maker_of(folder)
    return folder if made and made.encoder == encoder and weights_file(folder).exists() else None


def _start_from(model: nn.Module, weights: Path | None, fit_of_masks: Path | None) -> Statistics:
    """Start the encoder from `weights`, else from the fit of the masks; returns the channel statistics they expect."""
    source = weights or fit_of_masks
    if source is None:
        return Statistics()
    inner = encoder_of(model)
    try:
        statistics = load_weights(inner, source)
    except CheckpointError as error:
        if weights:
            raise
        log.warning("the encoder starts from scratch, not from the fit of the masks: %s", error)
        return Statistics()
    expect(inner, statistics)
    log.info("the encoder starts from %s", source)
    return statistics
