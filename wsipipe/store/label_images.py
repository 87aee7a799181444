"""Label images and score arrays: shards, coarser levels and metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import LEVEL_FACTOR, Grid, Window
from wsipipe.store import layout
from wsipipe.store.shards import ArraySpec, Cell, ShardedArray


def shard_windows(spec: ArraySpec) -> Iterator[tuple[Cell, Window]]:
    """Every shard of an array with its window, clipped to the array."""
    height, width = spec.shape[-2:]
    for row in range(spec.shards[0]):
        for col in range(spec.shards[1]):
            y, x = row * spec.shard_px, col * spec.shard_px
            yield (row, col), Window(x, y, min(spec.shard_px, width - x), min(spec.shard_px, height - y))


def shard_key(shard: Cell) -> str:
    """The key of a shard in the attribute `stored`: row.col."""
    return f"{shard[0]}.{shard[1]}"


def write_image(
    path: Path,
    name: str,
    grid: Grid,
    finest: ArraySpec,
    values: Mapping[int, str],
    meta: Mapping[str, Any],
    shards: Iterable[tuple[Cell, NDArray[Any]]],
) -> None:
    """Write a label image with its coarser levels to the folder `path`; `shards` yields shards of the finest level."""
    specs = label_specs(grid, finest)
    arrays = [layout.create_array(path / str(level), each, "yx") for level, each in enumerate(specs)]
    stored = {"0": {shard_key(shard): arrays[0].write_region(shard, pixels) for shard, pixels in shards}}
    finish_labels(path, name, grid, values, {**meta, "stored": stored}, arrays)


def label_specs(grid: Grid, finest: ArraySpec) -> list[ArraySpec]:
    """Specs of all levels of a label image, the finest first."""
    coarser = [ArraySpec(grid.level_shape(level), finest.dtype, finest.fill) for level in range(1, grid.levels)]
    return [finest, *coarser]


def finish_labels(
    path: Path,
    name: str,
    grid: Grid,
    values: Mapping[int, str],
    meta: Mapping[str, Any],
    arrays: Sequence[ShardedArray],
) -> None:
    """Write the coarser levels of a label image and its metadata; `meta` lists the stored shards of the finest."""
    stored = dict(meta["stored"])
    for level, (fine, coarse) in enumerate(pairwise(arrays), 1):
        stored[str(level)] = _decimate(fine, coarse)
    attributes = {"kind": "labels", **meta, "stored": stored}
    layout.write_group(path, layout.label_attributes(name, grid, values, attributes))


def score_attributes(name: str, grid: Grid, stride_px: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the group `scores/<name>`."""
    scales = layout.multiscales(name, grid, "cyx", stride_px)
    scales["datasets"] = scales["datasets"][:1]
    ome = {"version": "0.5", "multiscales": [scales]}
    return {"ome": ome, "wsipipe": {"kind": "scores", "stride_px": stride_px, **meta}}


def _decimate(fine: ShardedArray, coarse: ShardedArray) -> dict[str, int]:
    """Fill a coarser level with the pixel at the centre of each 4 x 4 square of the finer level."""
    f, n = LEVEL_FACTOR, coarse.spec.chunk_px
    height, width = fine.spec.shape
    stored = {}
    for shard, _ in shard_windows(coarse.spec):
        blocks = {}
        for row, col in coarse.spec.chunks_of_shard(shard):
            y, x = row * n * f, col * n * f
            window = Window(x, y, min(n * f, width - x), min(n * f, height - y))
            rows, cols = (
                np.minimum(np.arange(n) * f + f // 2, size - 1) for size in (window.height_px, window.width_px)
            )
            blocks[(row, col)] = fine.read(window)[np.ix_(rows, cols)]
        stored[shard_key(shard)] = coarse.write_blocks(shard, sorted(blocks.items()))
    return stored
