"""The last task of tiling a slide: write tissue, patches and attributes, and rename the complete store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.geometry import LEVEL_FACTOR, Window
from wsipipe.runtime.atomic import replace_folder
from wsipipe.runtime.memory import trim_memory
from wsipipe.slides.area_mean import area_mean
from wsipipe.store import PatchTable, SlideStore
from wsipipe.store.label_images import shard_key, shard_windows
from wsipipe.store.shards import Cell, ShardedArray
from wsipipe.store.tissue_levels import TissueLevels
from wsipipe.tiling.cache import SlideCache, Workspace
from wsipipe.tiling.job import TileJob, remove_partial
from wsipipe.tiling.levels import bad_windows, check_corrupt, is_derived
from wsipipe.tiling.plan import with_status
from wsipipe.tiling.qc_image import write_qc_image
from wsipipe.tiling.records import bad_from_rows, bad_to_rows, read_records, remove_records
from wsipipe.tissue.detect import TissueMask

Records = Mapping[tuple[int, int, int], Mapping[str, Any]]
"""(level, row, col) of a shard -> its record."""

_QC_MIN_PX = 800
"""Longer side of the coarsest level that the QC image may use."""


def finish_store(job: TileJob, cache: SlideCache) -> None:
    """Write tissue, patches and attributes, then rename the store to its target.

    Raises SlideError if more of the slide is unreadable than `max_corrupt` allows.
    """
    trim_memory()  # of the buffers of its shards
    work = cache.workspace(job)
    plan, slide = work.plan, work.slide
    store = SlideStore(job.partial)  # not `work.store`: other processes may have written since
    records = read_records(job)
    bad = dict(plan.bad)
    for record in records.values():
        bad |= bad_from_rows(record["bad"])
    windows = bad_windows(slide, plan.grid, bad)
    level0 = store.pixels()
    check_corrupt(job, windows, int(plan.chunks.sum()) * level0.spec.chunk_px**2, bad)
    stored = _stored(store, work, records)
    store.write_tissue(
        TissueLevels(plan.tissue.mask.view(np.uint8), plan.tissue.step_px, windows),
        {"digest": store.pixel_digest, "shares": plan.tissue.shares()},
    )
    table = with_status(plan.table, level0.present(), level0.spec.chunk_px, plan.tissue, windows)
    store.write_patches(table, plan.recipe.patches)
    copied = sum(_counts(records, 0, "copied").values())
    store.update_meta(
        stored=stored,
        copied=copied / max(1, sum(stored["0"].values())),
        bad=bad_to_rows(bad),
        bad_px=[astuple(w) for w in windows],
    )
    if job.config.normalise_stain:
        store.normalise_stain()
    if job.qc_image:
        _write_qc_image(job.qc_image, store, plan.tissue, table, windows)
    replace_folder(job.partial, job.target)
    remove_partial(job)
    remove_records(job.target)


def _stored(store: SlideStore, work: Workspace, records: Records) -> dict[str, dict[str, int]]:
    """Level -> shard (row.col) -> number of chunks stored; writes the levels that are derived from the one below."""
    grid = work.plan.grid
    stored = {str(level): _counts(records, level, "stored") for level in range(grid.levels)}
    for level in range(2, grid.levels if len(work.plan.table.cell) else 0):
        if is_derived(work.slide, grid, level):
            stored[str(level)] = _derive(store.pixels(level - 1), store.pixels(level))
    return stored


def _derive(fine: ShardedArray, coarse: ShardedArray) -> dict[str, int]:
    """Fill a level with area means of the one below; returns shard (row.col) -> number of chunks stored."""
    f, n = LEVEL_FACTOR, coarse.spec.chunk_px
    counts = {}
    for shard, _ in shard_windows(coarse.spec):

        def block(cell: Cell) -> tuple[Cell, NDArray[np.generic]]:
            source = fine.read(Window(cell[1] * n * f, cell[0] * n * f, n * f, n * f))
            rgb = np.ascontiguousarray(np.moveaxis(source, 0, -1), np.uint8)
            return cell, np.moveaxis(area_mean(rgb, (0, 0), (f, f), (n, n)), -1, 0)

        counts[shard_key(shard)] = coarse.write_blocks(shard, map(block, coarse.spec.chunks_of_shard(shard)))
    return counts


def _counts(records: Records, level: int, what: str) -> dict[str, int]:
    """Shard (row.col) of a level -> number of its chunks that are `what`: stored or copied."""
    return {shard_key((row, col)): record[what] for (k, row, col), record in sorted(records.items()) if k == level}


def _write_qc_image(
    path: Path, store: SlideStore, tissue: TissueMask, table: PatchTable, bad: Sequence[Window]
) -> None:
    """The QC image of a slide, drawn on the coarsest level of sufficient size."""
    level = max(k for k in range(store.grid.levels) if k == 0 or max(store.grid.level_shape(k)) >= _QC_MIN_PX)
    height, width = store.grid.level_shape(level)
    rgb = store.read(Window(0, 0, width, height), level)
    write_qc_image(path, rgb, LEVEL_FACTOR**level, tissue, table, bad)
