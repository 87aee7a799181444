"""Features of instances by a frozen encoder, computed once and cached in the stores."""

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
"""Bump when identical instances would get different features, so that stale ones are never reused."""


def embed(
    encoder: nn.Module, bags: Sequence[Bag], instance_grid: InstanceGrid, compute: ComputeContext, name: str = ""
) -> list[Tensor]:
    """Features of all instances of every bag: float32 [M, D] per bag, rounded to float16.

    name: that of the encoder, empty for no cache. With a name, instances on the grid of the whole slide are cached in
    `features/<name>-<digest of the weights>/<instance>_<seen>_<shrink>` of its store. Instances off that grid, and
    those whose context is cut off by the bounds of a region or patch, are computed each time.
    """
    out = [torch.empty(len(b.xy_px), width_of(encoder, instance_grid.input_px)) for b in bags]
    cached = [_cacheable(b, instance_grid) if name else np.zeros(len(b.xy_px), bool) for b in bags]
    if name:
        cache = _Cache(encoder, name, instance_grid, compute)
        stores = {b.store.path: b.store for b in bags}
        for i, store in enumerate(stores.values()):
            own = [k for k, b in enumerate(bags) if b.store.path == store.path and cached[k].any()]
            values = cache.features(store, [bags[k].xy_px[cached[k]] for k in own]) if own else []
            for k, v in zip(own, values, strict=True):
                out[k][torch.from_numpy(cached[k])] = v
            compute.progress("embed", i + 1, len(stores))
    uncached = [k for k in range(len(bags)) if not cached[k].all()]
    others = [replace(bags[k], xy_px=bags[k].xy_px[~cached[k]]) for k in uncached]
    for k, v in zip(uncached, apply_to_bags(encoder, others, instance_grid, 1, compute, "embed"), strict=True):
        out[k][torch.from_numpy(~cached[k])] = v.half().float()
    return out


class _Cache:
    """Features by one encoder of instances on the grids of whole slides."""

    def __init__(self, encoder: nn.Module, name: str, instance_grid: InstanceGrid, compute: ComputeContext) -> None:
        self._encoder, self._grid, self._compute = encoder, instance_grid, compute
        self._width = width_of(encoder, instance_grid.input_px)
        weights = digest_of(encoder)
        self._folder = f"{_safe_name(name)}-{weights[:8]}"
        self._digest = digest(weights, asdict(statistics_of(encoder)), asdict(instance_grid), CACHE_VERSION)

    def features(self, store: SlideStore, xy_px: Sequence[NDArray[np.int32]]) -> list[Tensor]:
        """Features float32 [M, D] of each set of instances, corners (x, y) int32 [M, 2]; missing ones are computed."""
        file = self._open(store)
        cells = [np.ascontiguousarray(xy[:, ::-1] // self._grid.instance_px).astype(np.int32) for xy in xy_px]
        self._fill(file, np.unique(np.concatenate(cells), axis=0), store)
        return [torch.from_numpy(file.read(c)) for c in cells]

    def _fill(self, file: Features, cells: NDArray[np.int32], store: SlideStore) -> None:
        """Compute and store the missing features of cells (row, col), int32 [M, 2], chunk by chunk."""
        missing = cells[np.isnan(file.read(cells)).any(1)]
        for _, inside in chunks_of(missing):
            part = missing[inside]
            xy_px = (part[:, ::-1] * self._grid.instance_px).astype(np.int32)
            crops = read_crops(store, xy_px, self._grid, store.grid.frame)
            file.write(part, apply_in_batches(self._encoder, crops, self._compute.device).numpy())

    def _open(self, store: SlideStore) -> Features:
        grid = self._grid
        name = f"{grid.instance_px}_{grid.seen_px}_{grid.shrink}"
        shape = (*store.grid.cells(grid.instance_px), self._width)
        return open_features(store, self._folder, name, shape, digest(self._digest, store.pixel_digest))


def _cacheable(bag: Bag, instance_grid: InstanceGrid) -> NDArray[np.bool_]:
    """Which instances lie on the grid of the whole slide and see the same there: bool [M]."""
    on = (bag.xy_px % instance_grid.instance_px == 0).all(1)
    seen, whole = (corners_of(bag.xy_px, instance_grid, b) for b in (bag.bounds, bag.store.grid.frame))
    return np.asarray(on & (seen == whole).all(1))


def _safe_name(name: str) -> str:
    """A name without characters that a folder must not have."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
