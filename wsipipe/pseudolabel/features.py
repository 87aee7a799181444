"""Features of the instances of bags by a frozen encoder, computed once and kept in the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.nn.checkpoint import digest_of
from wsipipe.nn.encoders import statistics_of, width_of
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, corners_of, read_crops
from wsipipe.pseudolabel.shared.classifier import apply_in_batches
from wsipipe.pseudolabel.shared.instances import apply_to_bags
from wsipipe.runtime.device import ComputeContext
from wsipipe.runtime.digest import digest
from wsipipe.store import SlideStore
from wsipipe.store.features import Features, chunks_of, open_features

CACHE_VERSION = 2
"""Raised when the same instances come to be seen otherwise, so that features of before are computed again."""


def embed(
    encoder: nn.Module, bags: Sequence[Bag], lattice: InstanceGrid, compute: ComputeContext, name: str = ""
) -> list[Tensor]:
    """Features float32 [M, D], rounded to float16, of the instances of every bag.

    name: of the encoder. With it, instances on the lattice of their slide are read from `features/<name>-<digest of the
    weights>/<instance>_<seen>_<shrink>` of its store, and put there if they were not. Instances beside the lattice, and
    those whose surroundings are cut off by the bounds of a region or patch, are computed.
    """
    width = width_of(encoder, lattice.input_px)
    out = [torch.empty(len(b.xy_px), width) for b in bags]
    kept = [_kept(b, lattice) if name else np.zeros(len(b.xy_px), bool) for b in bags]
    if name:
        weights = digest_of(encoder)
        folder = f"{_plain(name)}-{weights[:8]}"
        made_of = digest(weights, asdict(statistics_of(encoder)), asdict(lattice), CACHE_VERSION)
        stores = {b.store.path: b.store for b in bags}
        for i, store in enumerate(stores.values()):
            own = [k for k, b in enumerate(bags) if b.store.path == store.path and kept[k].any()]
            if own:
                features = _open(store, folder, lattice, width, made_of)
                cells = [_cells(bags[k].xy_px[kept[k]], lattice) for k in own]
                _fill(features, np.unique(np.concatenate(cells), axis=0), encoder, store, lattice, compute)
                for k, c in zip(own, cells, strict=True):
                    out[k][torch.from_numpy(kept[k])] = torch.from_numpy(features.read(c))
            compute.progress("embed", i + 1, len(stores))
    loose = [k for k in range(len(bags)) if not kept[k].all()]
    beside = [replace(bags[k], xy_px=bags[k].xy_px[~kept[k]]) for k in loose]
    for k, values in zip(loose, apply_to_bags(encoder, beside, lattice, 1, compute, "embed"), strict=True):
        out[k][torch.from_numpy(~kept[k])] = values.half().float()
    return out


def _fill(
    features: Features,
    cells: NDArray[np.int32],
    encoder: nn.Module,
    store: SlideStore,
    lattice: InstanceGrid,
    on: ComputeContext,
) -> None:
    """Compute and keep the features of those cells int [M, 2] of a slide that are not there, chunk by chunk."""
    missing = cells[np.isnan(features.read(cells)).any(1)]
    for _, inside in chunks_of(missing):
        part = missing[inside]
        xy_px = (part[:, ::-1] * lattice.instance_px).astype(np.int32)
        crops = read_crops(store, xy_px, lattice, store.grid.frame)
        features.write(part, apply_in_batches(encoder, crops, on.device).numpy())


def _open(store: SlideStore, folder: str, lattice: InstanceGrid, width: int, made_of: str) -> Features:
    m = lattice.instance_px
    grid = f"{m}_{lattice.seen_px}_{lattice.shrink}"
    return open_features(store, folder, grid, (*store.grid.cells(m), width), digest(made_of, store.pixel_digest))


def _kept(bag: Bag, lattice: InstanceGrid) -> NDArray[np.bool_]:
    """Which instances are cells of the slide's lattice and see what they see as parts of the whole slide."""
    on = (bag.xy_px % lattice.instance_px == 0).all(1)
    seen, whole = (corners_of(bag.xy_px, lattice, b) for b in (bag.bounds, bag.store.grid.frame))
    return np.asarray(on & (seen == whole).all(1))


def _cells(xy_px: NDArray[np.int32], lattice: InstanceGrid) -> NDArray[np.int32]:
    """Cells (row, col) of instances at xy, int32 [M, 2] both."""
    return np.ascontiguousarray(xy_px[:, ::-1] // lattice.instance_px).astype(np.int32)


def _plain(name: str) -> str:
    """A name as a folder may have it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
