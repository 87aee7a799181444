"""The inputs of one method: stores, weak labels and the choices of the options, resolved and checked once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from wsipipe.config.options import PretrainConfig, PseudolabelConfig
from wsipipe.errors import ConfigError, StoreError, check
from wsipipe.labels import LabelTable, match_stores, read_labels
from wsipipe.nn.encoders import HUBS, Statistics, chosen_encoder, create_encoder, statistics_of
from wsipipe.pseudolabel.bags import Bag, make_bags
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import Method
from wsipipe.pseudolabel.options import PseudolabelOptions, resolve_params, resolve_refinement
from wsipipe.pseudolabel.paint import LabelConstraint
from wsipipe.pseudolabel.params import MethodParams
from wsipipe.pseudolabel.refinement import RefinementStep
from wsipipe.pseudolabel.registry import load_method
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.device import ComputeContext
from wsipipe.runtime.ledger import read_ledger
from wsipipe.store import SlideStore, stain
from wsipipe.store.names import check_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiling:
    """How all training slides were tiled: um/px, side of a patch in working px, and whether stain is normalised."""

    mpp: float
    patch_px: int
    normalise_stain: bool

    @classmethod
    def shared_by(cls, stores: Sequence[SlideStore]) -> Tiling:
        """The tiling of `stores`; ConfigError if they differ."""
        mpps = {s.slide_id: s.grid.mean_mpp for s in stores}
        patches = {s.grid.patch_px for s in stores}
        low, high = min(mpps, key=mpps.__getitem__), max(mpps, key=mpps.__getitem__)
        check(
            mpps[high] / mpps[low] <= 1.05 and len(patches) == 1,
            f"training stores differ: {mpps[low]:g}..{mpps[high]:g} um/px ({low}, {high}), "
            f"patches of {sorted(patches)} px; tile them alike",
        )
        return cls(
            float(np.mean(list(mpps.values()))), patches.pop(), stain.common_setting(s.is_normalised for s in stores)
        )


@dataclass(frozen=True)
class LabelledSlides:
    """Stores with their weak labels.

    targets: the stores to label. stores: these and all others in the folder of stores, by slide id. table: the weak
    labels, each of a store. csv: the bytes of the labels file.
    """

    targets: tuple[SlideStore, ...]
    stores: Mapping[str, SlideStore]
    table: LabelTable
    csv: bytes

    @classmethod
    def read(cls, store_paths: Sequence[Path], config: PseudolabelConfig, context: RunContext) -> LabelledSlides:
        """Open the stores and match them with the labels; LabelsError lists rows without a store."""
        targets = tuple(SlideStore(p) for p in store_paths)
        stores = _stores_by_id(targets, context.stores)
        table = read_labels(Path(config.labels), config.classes or None)
        csv = Path(config.labels).read_bytes()
        ledger = read_ledger(context.runs / "tile" / "tile.csv")
        untiled = {row["item"] for row in ledger if row["status"] == "failed"}
        table, unlabelled = match_stores(table, list(stores), untiled)
        if unlabelled:
            log.info("%d stores have no row in %s: scored, not trained on", len(unlabelled), config.labels)
        return cls(targets, stores, table, csv)

    @cached_property
    def train_ids(self) -> list[str]:
        """Ids of the training slides, sorted."""
        return sorted({row.slide_id for row in self.table.of_split("train")})

    @property
    def training(self) -> list[SlideStore]:
        """The stores of the training slides, sorted by id."""
        return [self.stores[i] for i in self.train_ids]

    @property
    def not_held_out(self) -> list[SlideStore]:
        """All stores, sorted by id, but those of another split than train."""
        held_out = {row.slide_id for row in self.table.rows if row.split != "train"}
        return [store for i, store in sorted(self.stores.items()) if i not in held_out]

    def constraints(self, slide_id: str) -> list[LabelConstraint]:
        """What the training rows say of a slide: a class absent from a row is never painted in its box."""
        rows = self.table.of_split("train")
        return [LabelConstraint(row.present, row.box_px0) for row in rows if row.slide_id == slide_id]

    def split_of(self, slide_id: str) -> str:
        """`train` for training slides, else empty."""
        return "train" if slide_id in self.train_ids else ""

    def patient_of(self, slide_id: str) -> str:
        """The patient of a slide, empty if not known."""
        return next((row.patient_id for row in self.table.rows if row.slide_id == slide_id), "")


@dataclass(frozen=True)
class StartEncoder:
    """The encoder that a fit starts from.

    name: that of timm. weights: their file, None for random ones. statistics: the channel statistics that they expect.
    pretraining: how the encoder is pretrained on the patches of the slides, None if it is not.
    """

    name: str
    weights: Path | None
    statistics: Statistics
    pretraining: PretrainConfig | None


@dataclass(frozen=True)
class Inputs:
    """The inputs of one method, checked: whatever is wrong with them is found before any work starts.

    name: that of the masks and of the run folder. bags: the weak labels of training slides with their instances.
    """

    config: PseudolabelConfig
    name: str
    method: Method
    params: Any
    refinement: RefinementStep | None
    encoder: StartEncoder
    slides: LabelledSlides
    tiling: Tiling
    instance_grid: InstanceGrid
    compute: ComputeContext
    bags: Sequence[Bag]

    @classmethod
    def resolve(cls, store_paths: Sequence[Path], options: PseudolabelOptions, context: RunContext) -> Inputs:
        """The inputs for the one method of `options`; an error says what to change."""
        config = options.config
        method = load_method(config.method)
        params = resolve_params(method, config.method, options.sections)
        refinement = resolve_refinement(config, method, options.sections)
        name = config.name or config.method
        check_name(name)
        network, encoder = _start_encoder(options)
        slides = LabelledSlides.read(store_paths, config, context)
        tiling = Tiling.shared_by(slides.training)
        instance_grid = method.instance_grid(tiling.patch_px, params)
        method.build(slides.table.classes, network, instance_grid, params)  # fails now if it cannot be built
        compute = context.compute()
        bags = _training_bags(slides, instance_grid, params)
        return cls(config, name, method, params, refinement, encoder, slides, tiling, instance_grid, compute, bags)


def _start_encoder(options: PseudolabelOptions) -> tuple[nn.Module, StartEncoder]:
    """The network of the encoder, before any pretraining, and what it starts from."""
    config = options.config
    name, weights = chosen_encoder(config.encoder, config.weights)
    network = create_encoder(name, weights)
    pretrains = config.pretrain and weights is None and not name.startswith(HUBS)
    pretraining = replace(options.pretrain, encoder=name) if pretrains else None
    return network, StartEncoder(name, weights, statistics_of(network), pretraining)


def _stores_by_id(targets: Sequence[SlideStore], folder: Path) -> dict[str, SlideStore]:
    """The targets, then the other stores of `folder`, by slide id; ConfigError if two targets share an id."""
    stores: dict[str, SlideStore] = {}
    for store in targets:
        twin = stores.get(store.slide_id)
        if twin is not None:
            raise ConfigError(f"{twin.path} and {store.path} are stores of one slide; give one of them")
        stores[store.slide_id] = store
    for path in sorted(folder.glob("*.zarr")) if folder.is_dir() else []:
        if path.stem not in stores:
            try:
                stores[path.stem] = SlideStore(path)
            except StoreError as error:
                log.warning("skipped: %s", error)
    return stores


def _training_bags(slides: LabelledSlides, instance_grid: InstanceGrid, params: MethodParams) -> list[Bag]:
    """The bags of the training rows; ConfigError if those with tissue all have the same label for a class."""
    rows = slides.table.of_split("train")
    bags, notes = make_bags(slides.table, rows, slides.stores, instance_grid, params.min_tissue)
    for note in notes:
        log.warning("%s", note)
    for k, name in enumerate(slides.table.classes.names):
        check(
            len({bag.label[k] for bag in bags}) == 2,
            f"class {name}: all {len(bags)} training bags with tissue have the same label; at least one with and one "
            "without the class are required",
        )
    return bags
