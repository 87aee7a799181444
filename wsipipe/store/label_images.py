"""Label images and score arrays: their shards, their coarser levels, what their metadata says."""

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
    """Every shard of an array with the window of its pixels inside the array."""
    height, width = spec.shape[-2:]
    for row in range(spec.shards[0]):
        for col in range(spec.shards[1]):
            y, x = row * spec.shard_px, col * spec.shard_px
            yield (row, col), Window(x, y, min(spec.shard_px, width - x), min(spec.shard_px, height - y))


def shard_key(shard: Cell) -> str:
    """A shard as it is named in the list of what is stored: row.col."""
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
    """A label image in the folder `path`, coarser levels included; `shards` yields those of the finest with pixels."""
    specs = label_specs(grid, finest)
    arrays = [layout.create_array(path / str(level), each, "yx") for level, each in enumerate(specs)]
    stored = {"0": {shard_key(shard): arrays[0].write_region(shard, pixels) for shard, pixels in shards}}
    finish_labels(path, name, grid, values, {**meta, "stored": stored}, arrays)


def label_specs(grid: Grid, finest: ArraySpec) -> list[ArraySpec]:
    """What the levels of a label image are like, the finest first."""
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
    """Make the coarser levels of a label image of its finest (`meta` says what that stores), then its metadata."""
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
    """Fill a coarser mask level with the pixel nearest to the centre of each square of the finer one."""
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
