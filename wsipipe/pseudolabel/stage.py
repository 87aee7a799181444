"""The stage: fit a method on the training bags, then score every store and write its masks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsipipe.config.options import PretrainConfig, PseudolabelConfig, fitted_with
from wsipipe.config.yaml import build
from wsipipe.errors import CheckpointError, ConfigError, StoreError, other_inputs
from wsipipe.labels import match_stores, read_labels
from wsipipe.nn.checkpoint import Checkpoint, load_weights_of, read_checkpoint, weights_digest
from wsipipe.nn.encoders import HUBS, chosen_encoder, create_encoder, statistics_of
from wsipipe.nn.train import seeded_init
from wsipipe.pretrain.stage import Input, encoder_of, key_of
from wsipipe.pseudolabel.bags import Bag, make_bags
from wsipipe.pseudolabel.features import embed
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, Method
from wsipipe.pseudolabel.objects import Objects
from wsipipe.pseudolabel.paint import Rule, excluded_cells, gate, mask_values, painted
from wsipipe.pseudolabel.refinement import Step, refined
from wsipipe.pseudolabel.registry import chosen, load, load_refinement, names, refinements
from wsipipe.runtime.atomic import write_bytes, write_json
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.digest import digest
from wsipipe.runtime.ledger import Report, read_ledger
from wsipipe.store import SlideStore, stain
from wsipipe.store.label_images import shard_windows
from wsipipe.store.names import check_name
from wsipipe.store.shards import ArraySpec, Cell

log = logging.getLogger(__name__)

CACHE_VERSION = 3
"""Raised when the same inputs come to give other fits or masks, so that none of before is taken for one of now."""

Sections = Mapping[str, Mapping[str, Any]]
"""Parameters by the name of the method or refinement that they are of."""


@dataclass(frozen=True)
class PseudolabelOptions:
    """The options of the stage, parameters by method or refinement, and how the encoder is pretrained, if it is."""

    config: PseudolabelConfig
    sections: Sections = field(default_factory=dict)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


def run(store_paths: Sequence[Path], options: PseudolabelOptions, context: RunContext) -> tuple[Report, list[Path]]:
    """Fit (or load the fit of the same inputs) and write `scores/<name>` and `labels/<name>` into `store_paths`.

    Each of the methods that `config.method` names does so, under its own name. The labels may also name stores in the
    folder of stores, so that a new slide alone can be scored. Returns the ledger and the stores that hold all masks.
    Everything is checked before any work starts.
    """
    config, sections = options.config, options.sections
    if strange := set(sections) - {*names(), *refinements()}:
        raise ConfigError(f"pseudolabel: parameters of {', '.join(sorted(strange))}, no method or refinement")
    several = chosen(config.method)
    if len(several) > 1 and config.name:
        raise ConfigError(f"pseudolabel.name: {config.name!r} for {len(several)} methods; each is named after itself")
    configs = [replace(config, method=method) for method in several]
    stages = [Stage(store_paths, replace(options, config=c), context) for c in configs]
    if not context.overwrite:
        for stage in stages:
            stage.check_free()
    report, done = context.report(), list(store_paths)
    for stage in stages:
        own, made = _run(stage, context)
        report.merge(own)
        done = [path for path in done if path in made]
    return report, done


def _run(stage: Stage, context: RunContext) -> tuple[Report, list[Path]]:
    """One method on all stores: its ledger and the stores that hold its masks."""
    model = stage.fitted()
    report = context.report()
    done: list[Path] = []
    for i, store in enumerate(stage.targets):
        context.progress("score", i, len(stage.targets), store.slide_id)
        with report.guard(store.slide_id):
            status = stage.apply(model, store)
            report.add(store.slide_id, status, store=store.path)
            done.append(store.path)
    context.progress("score", len(stage.targets), len(stage.targets))
    report.write(stage.folder / "pseudolabel.csv")
    return report, done


def chosen_refinement(config: PseudolabelConfig, method: Method, sections: Sections) -> Step | None:
    """The refinement that is asked for, or the method's own; None for none."""
    name = config.refine or method.REFINEMENT
    module = load_refinement(name)
    if module is None:
        return None
    params = build(module.Params, sections.get(name, {}), f"pseudolabel.{name}")
    return Step(name, module, params, config.refine_stride_px)


class Stage:
    """One pseudolabel run: inputs checked on construction, then fitted, then applied store by store."""

    def __init__(self, store_paths: Sequence[Path], options: PseudolabelOptions, context: RunContext) -> None:
        config, sections = options.config, options.sections
        self.config, self.run, self.context = config, context.run, context
        self.method: Method = load(config.method)
        self.params = build(self.method.Params, sections.get(config.method, {}), f"pseudolabel.{config.method}")
        self.refinement = chosen_refinement(config, self.method, sections)
        self.name = config.name or config.method
        check_name(self.name)
        self.encoder, self.weights = chosen_encoder(config.encoder, config.weights)
        encoder = create_encoder(self.encoder, self.weights)
        self.statistics = statistics_of(encoder)
        self.pretraining = replace(options.pretrain, encoder=self.encoder)
        self.folder = context.runs / self.name
        self.targets = [SlideStore(p) for p in store_paths]
        self.stores = _known_stores(self.targets, context.stores)
        table = read_labels(Path(config.labels), config.classes or None)
        self.snapshot = Path(config.labels).read_bytes()
        untiled = {r["item"] for r in read_ledger(context.runs / "tile" / "tile.csv") if r["status"] == "failed"}
        self.table, unlabelled = match_stores(table, list(self.stores), untiled)
        if unlabelled:
            log.info("%d stores have no row in %s: scored, not trained on", len(unlabelled), config.labels)
        self.train_ids = sorted({r.slide_id for r in self.table.of_split("train")})
        self.grid = _common_grid([self.stores[i] for i in self.train_ids])
        self.normalise_stain = stain.common_setting(self.stores[i].is_normalised for i in self.train_ids)
        self.lattice: InstanceGrid = self.method.lattice(self.grid[1], self.params)
        self.method.build(self.table.classes, encoder, self.lattice, self.params)  # what cannot be is found now
        self.compute = context.compute()
        self.objects = Objects(self.method, self.params, self.lattice, self.compute.device, self.name, self.folder)
        self.bags, notes = self._bags()
        for note in notes:
            log.warning("%s", note)
        self.digest = self._digest()

    def _bags(self) -> tuple[list[Bag], list[str]]:
        min_tissue = float(getattr(self.params, "min_tissue", 0.5))
        rows = self.table.of_split("train")
        bags, notes = make_bags(self.table, rows, self.stores, self.lattice, min_tissue)
        for k, name in enumerate(self.table.classes.names):
            if len({b.label[k] for b in bags}) < 2:
                raise ConfigError(f"class {name}: after leaving out empty bags all training bags say the same")
        return bags, notes

    def _digest(self) -> str:
        """Key of the fit: labels, training stores, the parameters that it depends on, encoder and seed."""
        rows = [asdict(r) | {"line": 0} for r in self.table.of_split("train")]
        made_of = {
            "edition": CACHE_VERSION,
            "rows": rows,
            "classes": self.table.classes.names,
            "stores": [self.stores[i].digest for i in self.train_ids],
            "method": (self.config.method, fitted_with(self.params), self.config.self_train),
            "encoder": (
                self.encoder,
                weights_digest(self.weights),
                self._pretrains and key_of([], self.pretraining, self._input, self.run),
            ),
            "seed": self.run.seed,
        }
        return digest(made_of)

    def fitted(self) -> nn.Module:
        """The fit of these inputs: loaded if `runs/<name>/` or another run holds it, made and saved otherwise."""
        path = self.folder / "fit.json"
        if self._is_fitted():
            log.info("%s: fitted before with the same inputs", self.folder)
            return self._loaded(self.folder)
        path.unlink(missing_ok=True)
        same = [p.parent for p in sorted(Path(self.run.runs).glob("*/fit.json")) if self._holds_this_fit(p)]
        if same:  # as where only the refinement or the name is another
            log.info("%s: the fit of %s, whose inputs are the same", self.folder, same[0])
            model = self._loaded(same[0])
            self._save(model, path)
            return model
        make, compute = self._encoder_maker(), self.compute
        run = FitContext(
            self.table.classes,
            make,
            self.config.self_train,
            compute,
            lambda bags, lattice: embed(make(), bags, lattice, compute, self.encoder),
        )
        model = self.method.fit(self.bags, self.lattice, self.params, run)
        self._save(model, path)
        return model

    def check_free(self) -> None:
        """StoreError before any work if the run folder or a store holds something else under this name."""
        other = (self.folder / "fit.json").exists() or self._is_of_another_stage()
        if other and not self._is_fitted():
            raise StoreError(other_inputs(self.folder))
        for store in self.targets:
            for kind in ("labels", "scores"):
                store.can_reuse(kind, self.name, self._key(store), overwrite=False)

    def _is_fitted(self) -> bool:
        return self._holds_this_fit(self.folder / "fit.json")

    def _holds_this_fit(self, path: Path) -> bool:
        return path.exists() and json.loads(path.read_text()).get("digest") == self.digest

    def _is_of_another_stage(self) -> bool:
        """Whether the run folder holds a model of another maker, such as the network of `segment`."""
        path = self.folder / "model.json"
        try:
            return path.exists() and read_checkpoint(path).network != self.config.method
        except CheckpointError:
            return True

    def _key(self, store: SlideStore) -> str:
        """Key of what is painted into a store: fit, parameters, pixels, the labels that it is held to, refinement."""
        step = self.refinement
        how = step and (step.name, asdict(step.params), step.stride_px)
        return digest(self.digest, asdict(self.params), store.digest, self._rules(store.slide_id), how)

    @property
    def _pretrains(self) -> bool:
        """Whether the encoder is pretrained here: asked for, and it comes without weights."""
        return self.config.pretrain and self.weights is None and not self.encoder.startswith(HUBS)

    @property
    def _input(self) -> Input:
        """What the encoder sees of the slides."""
        return Input(self.lattice.input_px, self.lattice.shrink)

    def _encoder_maker(self) -> Callable[[], nn.Module]:
        """A function that makes the starting encoder: from a file, pretrained here when first asked for, or anew."""

        @cache
        def weights() -> Path | None:
            with torch.random.fork_rng(devices=[]):  # what is made next is the same whether or not it was there
                return self._pretrained() if self._pretrains else self.weights

        def make() -> nn.Module:
            return seeded_init(lambda: create_encoder(self.encoder, weights()), self.run.seed)

        return make

    def _pretrained(self) -> Path:
        """An encoder pretrained on all stores that are not held out, in a run folder that fits of all methods share."""
        held_out = {r.slide_id for r in self.table.rows if r.split != "train"}
        stores = [s for i, s in sorted(self.stores.items()) if i not in held_out]
        key = key_of(stores, self.pretraining, self._input, self.run)
        folder = Path(self.run.runs) / f"pretrain-{key[:8]}"
        return encoder_of(stores, self.pretraining, self._input, folder, self.context)

    def _save(self, model: nn.Module, path: Path) -> None:
        """Weights, the labels that they were fitted on, and last the key that makes them count."""
        mpp, patch_px = self.grid
        Checkpoint(
            network=self.config.method,
            encoder=self.encoder,
            classes=self.table.classes.names,
            mpp=mpp,
            patch_px=patch_px,
            digest=self.digest,
            mean=self.statistics.mean,
            std=self.statistics.std,
            settings=asdict(self.params),
            normalise_stain=self.normalise_stain,
        ).save(self.folder, model)
        write_bytes(self.folder / "labels.csv", self.snapshot)
        write_json(path, {"digest": self.digest, "config": asdict(self.config), "run": asdict(self.run)})

    def _loaded(self, folder: Path) -> nn.Module:
        encoder = create_encoder(self.encoder, statistics=self.statistics)
        model = self.method.build(self.table.classes, encoder, self.lattice, self.params)
        load_weights_of(folder, model)
        return model.to(self.compute.device).eval()

    def apply(self, model: nn.Module, store: SlideStore) -> str:
        """Score one store and paint its mask; returns done or skipped."""
        rules = self._rules(store.slide_id)
        key = self._key(store)
        there = (store.can_reuse(kind, self.name, key, self.context.overwrite) for kind in ("labels", "scores"))
        if all(there) and self.objects.current(store, key, self.context.overwrite):
            return "skipped"
        store.check_compatible(self.grid[0], self.normalise_stain, "the fit")
        excluded = excluded_cells(rules, len(self.table.classes), store, self.lattice.instance_px)
        scores = self.method.score(model, store, self.lattice, self.params, self.compute.device, excluded)
        scores = gate(scores, rules, store)
        sharp = scores
        if self.refinement:  # which may carry a class over the border of a box that excludes it
            sharp = gate(refined(scores, store, self.refinement, self.compute.device), rules, store)
        mask = self.method.mask(sharp, self.params)
        classes = self.table.classes
        split = "train" if store.slide_id in self.train_ids else ""
        patient = next((r.patient_id for r in self.table.rows if r.slide_id == store.slide_id), "")
        meta = {
            "digest": key,
            "classes": list(classes.names),
            "method": self.config.method,
            "fit": self.digest,
            "split": split,
            "patient": patient,
        }
        stored = np.nan_to_num(np.rint(scores.values * 255), nan=0).astype(np.uint8)
        store.write_scores(self.name, scores.stride_px, meta, _as_shards(stored))
        store.write_labels(self.name, mask_values(classes), meta, painted(mask, sharp.stride_px, store, rules))
        self.objects.write(model, store, meta)
        return "done"

    def _rules(self, slide_id: str) -> list[Rule]:
        """(label, box) of the training rows of a slide: a class absent from a bag's label is never painted in it."""
        return [(r.present, r.box_px0) for r in self.table.of_split("train") if r.slide_id == slide_id]


def _known_stores(targets: Sequence[SlideStore], folder: Path) -> dict[str, SlideStore]:
    """Stores by slide id: those asked for, then those of `folder`; ConfigError if two asked for share an id."""
    known: dict[str, SlideStore] = {}
    for store in targets:
        if store.slide_id in known:
            raise ConfigError(
                f"{known[store.slide_id].path} and {store.path} are stores of one slide; give one of them"
            )
        known[store.slide_id] = store
    for path in sorted(folder.glob("*.zarr")) if folder.is_dir() else []:
        if path.stem not in known:
            try:
                known[path.stem] = SlideStore(path)
            except StoreError as error:
                log.warning("left aside: %s", error)
    return known


def _common_grid(stores: Sequence[SlideStore]) -> tuple[float, int]:
    """(mpp, patch_px) shared by all training stores; ConfigError if they differ."""
    mpps = {s.slide_id: s.grid.mean_mpp for s in stores}
    patches = {s.grid.patch_px for s in stores}
    low, high = min(mpps, key=mpps.__getitem__), max(mpps, key=mpps.__getitem__)
    if mpps[high] / mpps[low] > 1.05 or len(patches) > 1:
        raise ConfigError(
            f"training stores differ: {mpps[low]:g}..{mpps[high]:g} um/px ({low}, {high}), "
            f"patches of {sorted(patches)} px; tile them alike"
        )
    return float(np.mean(list(mpps.values()))), patches.pop()


def _as_shards(values: NDArray[np.uint8]) -> Iterator[tuple[Cell, NDArray[np.uint8]]]:
    """A whole [K, h, w] array, shard by shard."""
    for shard, w in shard_windows(ArraySpec(values.shape, "uint8", 0)):
        yield shard, values[:, w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
