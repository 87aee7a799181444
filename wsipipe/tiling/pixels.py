"""The second task of tiling a slide, once per shard: copy its chunks, or decode, resample and encode their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import LEVEL_FACTOR, Window, ceil_div
from wsipipe.slides.resample import SlideView, source_level
from wsipipe.store.shards import ArraySpec, Cell
from wsipipe.store.slide_store import WHITE
from wsipipe.tiling.cache import SlideCache, Workspace
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.records import write_record


@dataclass(frozen=True)
class ShardTask:
    """One shard of one level, and the number of its planned chunks."""

    level: int
    shard: Cell
    chunks: int


def write_shard(job: TileJob, task: ShardTask, cache: SlideCache) -> int:
    """Write one shard of pixels and its record; returns the number of its planned chunks.

    A shard depends on the job alone: any process may write it, and writing it again gives the same bytes.
    """
    work = cache.workspace(job)
    array = work.store.pixels(task.level)
    view = SlideView(work.slide, work.plan.grid, job.config.fast_resample)
    copied = 0

    def chunks() -> Iterator[tuple[Cell, tuple[bytes, ...]]]:
        nonlocal copied
        for cell, stream in _streams(work, task):
            if stream:
                copied += 1
                yield cell, stream
                continue
            rgb = view.read(_inside(array.spec, cell), LEVEL_FACTOR**task.level)
            if not view.bad or (rgb != WHITE).any():
                yield cell, (array.spec.encode(_padded(rgb, array.spec.chunk_px)),)

    stored = array.write_shard(task.shard, chunks())
    write_record(job, task.level, task.shard, stored=stored, copied=copied, bad=view.bad)
    return task.chunks


def _streams(work: Workspace, task: ShardTask) -> Iterator[tuple[Cell, tuple[bytes, ...] | None]]:
    """The planned chunks of a shard in order, each with the slide's JPEG stream if it is copied, otherwise None."""
    cells = work.cells(task.level, task.shard)
    tiles = work.slide.tiles(source_level(work.slide, work.plan.grid, LEVEL_FACTOR**task.level))
    if tiles is None or task.level not in work.store.meta["copied_levels"]:
        yield from ((cell, None) for cell in cells)
        return
    rows, cols = _covered(work.store.pixels(task.level).spec, tiles.size_px)
    streams = tiles.jpegs([(r, c) for r, c in cells if r < rows and c < cols])
    for row, col in cells:
        yield next(streams) if row < rows and col < cols else ((row, col), None)


def _covered(spec: ArraySpec, size_px: tuple[int, int]) -> Cell:
    """Rows and columns of chunks whose pixels lie wholly in a slide level of this (width, height)."""
    rows, cols = (
        have // spec.chunk_px if have < n else ceil_div(n, spec.chunk_px)
        for n, have in zip(spec.shape[-2:], reversed(size_px), strict=True)
    )
    return rows, cols


def _inside(spec: ArraySpec, cell: Cell) -> Window:
    """The pixels of a chunk that lie inside the array."""
    n, (height, width) = spec.chunk_px, spec.shape[-2:]
    y, x = cell[0] * n, cell[1] * n
    return Window(x, y, min(n, width - x), min(n, height - y))


def _padded(rgb: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] -> one whole chunk [3, n, n]; the border pixels are repeated, so JPEG meets no edge."""
    h, w = rgb.shape[:2]
    whole = rgb if (h, w) == (n, n) else np.pad(rgb, ((0, n - h), (0, n - w), (0, 0)), mode="edge")
    return np.moveaxis(whole, -1, 0)
