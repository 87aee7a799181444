"""The stage: pretrain an encoder on the patches of stores and save it as a checkpoint; a killed run goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsipipe.config.options import PretrainConfig, RunConfig
from wsipipe.errors import CheckpointError, ConfigError, check, other_inputs
from wsipipe.labels import match_slide_id, read_labels
from wsipipe.nn.checkpoint import Checkpoint, maker_of
from wsipipe.nn.encoders import create_encoder, normalise, statistics_of, width_of
from wsipipe.nn.train import Schedule, TrainHooks, fit, generator, seeded
from wsipipe.nn.training_state import KEEP_S, TrainingState
from wsipipe.pretrain.monitor import EarlyStopping
from wsipipe.pretrain.objectives import objective
from wsipipe.pretrain.views import Pool, Views, patch_pool
from wsipipe.runtime.atomic import write_csv
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.device import ComputeContext
from wsipipe.runtime.digest import digest
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore
from wsipipe.store.names import check_name

log = logging.getLogger(__name__)

RATES = {"vicreg": 2e-3, "simclr": 1e-3, "byol": 1e-3, "dino": 5e-4}
"""Highest learning rate (AdamW) of each method."""

ASIDE = 0.1
"""Share of the patches held aside for the checks."""


@dataclass(frozen=True)
class Input:
    """What the encoder sees: `px` is the side of its input, `shrink` the working px per input px."""

    px: int
    shrink: int


def run(store_paths: Sequence[Path], config: PretrainConfig, context: RunContext) -> tuple[Report, list[Path]]:
    """Pretrain on stores (less those that `config.labels` holds out) and write `runs/<name>/model.*`.

    Returns the ledger and the checkpoint's JSON. The same inputs are not trained twice; others under the same name are
    an error unless `context.overwrite`.
    """
    check_name(config.name)
    stores = [SlideStore(p) for p in store_paths]
    if config.labels:
        held_out = _held_out(Path(config.labels), {s.slide_id for s in stores})
        stores = [s for s in stores if s.slide_id not in held_out]
        log.info("%d slides are held out by %s", len(held_out), config.labels)
    folder = context.runs / config.name
    view_of = Input(config.input_px, config.shrink)
    key = key_of(stores, config, view_of, context.run)
    if not context.overwrite and (folder / "model.json").exists() and not is_made(folder, key):
        raise CheckpointError(other_inputs(folder))
    path = encoder_of(stores, config, view_of, folder, context)
    report = context.report()
    report.add(str(path), "done")
    return report, [path]


def _held_out(labels: Path, known: set[str]) -> set[str]:
    """Those of the `known` slides that `labels` puts into another split than train; ids may carry a file suffix."""
    rows = [r for r in read_labels(labels, to_fit=False).rows if r.split != "train"]
    return {match_slide_id(r.slide_id, known) for r in rows} & known


def key_of(stores: Sequence[SlideStore], config: PretrainConfig, view_of: Input, run: RunConfig) -> str:
    """Digest of all that a pretrained encoder depends on."""
    options = {k: v for k, v in asdict(config).items() if k not in ("name", "labels", "input_px", "shrink")}
    return digest("pretrain", sorted(s.digest for s in stores), options, asdict(view_of), run.seed)


def is_made(folder: Path, key: str) -> bool:
    """Whether `folder` holds the encoder of this key."""
    made = maker_of(folder)
    return made is not None and made.digest == key and (folder / "model.safetensors").exists()


def encoder_of(
    stores: Sequence[SlideStore],
    config: PretrainConfig,
    view_of: Input,
    folder: Path,
    context: RunContext,
) -> Path:
    """The checkpoint `folder/model.json` of an encoder pretrained on `stores`; reused if it exists."""
    key = key_of(stores, config, view_of, context.run)
    if is_made(folder, key):
        log.info("%s: reusing the encoder pretrained on the same patches", folder)
        return folder / "model.json"
    check(bool(stores), "no slide to pretrain on; check the stores and the splits of the labels")
    compute = context.compute()
    if config.method == "dino" and compute.device.type == "cpu":
        log.warning("dino needs many steps and a GPU; on a CPU vicreg or simclr learn more in the same time")
    pool = patch_pool(stores, view_of.px, view_of.shrink, compute.seed)
    if len(pool) < 2:
        raise ConfigError(f"{len(pool)} patches to pretrain on; check what the stores hold with: wsipipe info STORE")
    state = TrainingState(folder / "training.state", key, KEEP_S)
    with seeded(torch.device("cpu"), compute.seed):
        encoder = create_encoder(config.encoder)
    monitor, losses = train(encoder, pool, Views(view_of.px, config.stain_jitter), config, compute, state)
    own, grid = statistics_of(encoder), stores[0].grid
    facts = {**asdict(config), "input_px": view_of.px, "shrink": view_of.shrink}
    facts |= {"patches": len(pool), "steps_done": len(losses)}
    mpp = grid.mean_mpp
    checkpoint = Checkpoint("encoder", config.encoder, (), mpp, grid.patch_px, key, own.mean, own.std, facts)
    path = checkpoint.save(folder, encoder)
    columns = ("step", "loss", "effective_rank")
    write_csv(folder / "checks.csv", columns, [dict(zip(columns, c, strict=True)) for c in monitor.checks])
    state.clear()
    return path


def train(
    encoder: torch.nn.Module,
    pool: Pool,
    views: Views,
    config: PretrainConfig,
    compute: ComputeContext,
    state: TrainingState | None,
) -> tuple[EarlyStopping, list[float]]:
    """Train `encoder` in place on two random views of each drawn patch; returns the checks and the losses."""
    learn, aside = pool.split(ASIDE, compute.seed)
    with seeded(torch.device("cpu"), compute.seed):
        model = objective(config.method, encoder, width_of(encoder, views.input_px), config.steps).to(compute.device)
    monitor = EarlyStopping(model, aside, views, compute, config.steps, config.patience)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = generator(compute.seed, 1, step)
        x = learn.draw(config.batch, g)
        return views.draw(x, g), views.draw(x, g)

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        a, b = (normalise(x.to(compute.device)) for x in pair)
        return torch.as_tensor(model(a, b))

    schedule = Schedule(config.steps, config.lr or RATES[config.method])
    losses = fit(model, batch, loss, schedule, "pretrain", compute, TrainHooks(state, monitor))
    return monitor, losses
