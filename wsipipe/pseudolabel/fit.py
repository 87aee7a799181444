"""The fit of a method: loaded from its run folder, taken from another run with the same inputs, or made and saved."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from wsipipe.config.options import PretrainConfig, fitted_with
from wsipipe.errors import CheckpointError, StoreError, other_inputs
from wsipipe.nn.checkpoint import Checkpoint, load_weights_of, read_checkpoint, weights_digest
from wsipipe.nn.encoders import create_encoder
from wsipipe.nn.train import seeded_init
from wsipipe.pretrain.stage import Input, encoder_of, key_of
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.features import embed
from wsipipe.pseudolabel.inputs import Inputs
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext
from wsipipe.runtime.atomic import write_bytes, write_json
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.digest import digest

log = logging.getLogger(__name__)

CACHE_VERSION = 3
"""Bump when identical inputs would produce a different fit or mask, so that stale ones are never reused."""


@dataclass(frozen=True)
class Fit:
    """The fit of one method on its inputs, kept in `runs/<name>`."""

    inputs: Inputs
    context: RunContext

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.context.runs / self.inputs.name

    @cached_property
    def key(self) -> str:
        """Digest of all that the fit depends on: labels, training stores, parameters, encoder and seed."""
        inputs, encoder, seed = self.inputs, self.inputs.encoder, self.context.run.seed
        method = inputs.config.method, fitted_with(inputs.params), inputs.config.self_train
        pretrained = encoder.pretraining is not None and key_of(
            [], encoder.pretraining, self._encoder_input, self.context.run
        )
        parts = {
            "cache_version": CACHE_VERSION,
            "rows": [asdict(row) | {"line": 0} for row in inputs.slides.table.of_split("train")],
            "classes": inputs.slides.table.classes.names,
            "stores": [store.digest for store in inputs.slides.training],
            "method": method,
            "encoder": (encoder.name, weights_digest(encoder.weights), pretrained),
            "seed": seed,
        }
        return digest(parts)

    def model(self) -> nn.Module:
        """The fitted network on its device: loaded if a run folder holds this fit, made and saved otherwise."""
        if self._is_in(self.folder):
            log.info("%s: fitted before with the same inputs", self.folder)
            return self._load(self.folder)
        (self.folder / "fit.json").unlink(missing_ok=True)
        same = [p.parent for p in sorted(self.context.runs.glob("*/fit.json")) if self._is_in(p.parent)]
        if same:  # only the refinement or the name differs
            log.info("%s: reusing the fit of %s, whose inputs are the same", self.folder, same[0])
            model = self._load(same[0])
        else:
            model = self._make()
        self._save(model)
        return model

    def check_free(self) -> None:
        """StoreError if the run folder holds another fit, or a model of another stage."""
        other = (self.folder / "fit.json").exists() or self._is_of_another_stage()
        if other and not self._is_in(self.folder):
            raise StoreError(other_inputs(self.folder))

    def _is_in(self, folder: Path) -> bool:
        """Whether a run folder holds a complete fit with this key."""
        path = folder / "fit.json"
        return path.exists() and json.loads(path.read_text()).get("digest") == self.key

    def _is_of_another_stage(self) -> bool:
        """Whether the run folder holds another model, such as the network of `segment`."""
        path = self.folder / "model.json"
        try:
            return path.exists() and read_checkpoint(path).network != self.inputs.config.method
        except CheckpointError:
            return True

    def _load(self, folder: Path) -> nn.Module:
        inputs = self.inputs
        encoder = create_encoder(inputs.encoder.name, statistics=inputs.encoder.statistics)
        model = inputs.method.build(inputs.slides.table.classes, encoder, inputs.instance_grid, inputs.params)
        load_weights_of(folder, model)
        return model.to(inputs.compute.device).eval()

    def _make(self) -> nn.Module:
        inputs, make_encoder = self.inputs, self._encoder_maker()

        def embed_bags(bags: Sequence[Bag], instance_grid: InstanceGrid) -> list[Tensor]:
            return embed(make_encoder(), bags, instance_grid, inputs.compute, inputs.encoder.name)

        classes, self_train = inputs.slides.table.classes, inputs.config.self_train
        context = FitContext(classes, make_encoder, self_train, inputs.compute, embed_bags)
        return inputs.method.fit(inputs.bags, inputs.instance_grid, inputs.params, context)

    def _save(self, model: nn.Module) -> None:
        """Write weights and labels, and last the key: a folder without it holds no fit."""
        inputs = self.inputs
        Checkpoint(
            network=inputs.config.method,
            encoder=inputs.encoder.name,
            classes=inputs.slides.table.classes.names,
            mpp=inputs.tiling.mpp,
            patch_px=inputs.tiling.patch_px,
            digest=self.key,
            mean=inputs.encoder.statistics.mean,
            std=inputs.encoder.statistics.std,
            settings=asdict(inputs.params),
            normalise_stain=inputs.tiling.normalise_stain,
        ).save(self.folder, model)
        write_bytes(self.folder / "labels.csv", inputs.slides.csv)
        made = {"digest": self.key, "config": asdict(inputs.config), "run": asdict(self.context.run)}
        write_json(self.folder / "fit.json", made)

    @property
    def _encoder_input(self) -> Input:
        """What the encoder sees of a slide."""
        return Input(self.inputs.instance_grid.input_px, self.inputs.instance_grid.shrink)

    def _encoder_maker(self) -> Callable[[], nn.Module]:
        """A function that creates the starting encoder; its first call pretrains where that is asked for."""
        encoder = self.inputs.encoder

        @cache
        def weights() -> Path | None:
            with torch.random.fork_rng(devices=[]):  # whatever follows draws the same, pretrained now or before
                return self._pretrained(encoder.pretraining) if encoder.pretraining else encoder.weights

        return lambda: seeded_init(lambda: create_encoder(encoder.name, weights()), self.context.run.seed)

    def _pretrained(self, config: PretrainConfig) -> Path:
        """An encoder pretrained on all stores not held out, in a run folder that the fits of all methods share."""
        stores = self.inputs.slides.not_held_out
        key = key_of(stores, config, self._encoder_input, self.context.run)
        return encoder_of(stores, config, self._encoder_input, self.context.runs / f"pretrain-{key[:8]}", self.context)
