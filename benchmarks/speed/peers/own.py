"""wsipipe itself: tiling a slide, reading patches at random, and the lists of equal work for everybody else."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import CHUNK_PX, SHARD_PX, WORKERS, Job, Pixels, Plan, Stopwatch, Windows, result, run, timed_reads
from numpy.typing import NDArray

from wsipipe.runtime.context import RunContext

SLIDE_MPP = 0.25
POOL = 4096
READS = 2048
OFF_GRID_PX = (97, 61)
"""How far (x, y) the off-grid windows lie beside the chunks."""


class ShardPhase:
    """Stands in for the task that writes a shard and notes when the shards of level 0 begin and end."""

    def __init__(self) -> None:
        from wsipipe.tiling import stage

        self._write_shard = stage.write_shard
        self._times: list[float] = []
        self.cpu = 0.0
        stage.write_shard = self._timed

    def _timed(self, job: Any, task: Any) -> int:
        began, cpu = time.perf_counter(), time.thread_time()
        chunks = self._write_shard(job, task)
        if task.level == 0:
            self._times += (began, time.perf_counter())
            self.cpu += time.thread_time() - cpu
        return chunks

    @property
    def seconds(self) -> float:
        """From the start of the first to the end of the last."""
        return max(self._times) - min(self._times)


def tile(job: Job) -> dict[str, Any]:
    """The whole command on one slide without start-up; `shards` are the seconds in which level 0 is written."""
    from wsipipe.slides import SlideFile
    from wsipipe.slides.probe import Prober

    with Prober().start() as prober:  # as the command does: it starts while the rest is loaded
        from wsipipe.config.options import RunConfig, TileConfig
        from wsipipe.tiling.stage import run as tile_slides

        phase = ShardPhase()
        run_config = RunConfig(stores=str(job.out), runs=str(job.out), workers=WORKERS)
        with Stopwatch() as watch:
            slides = {"store": SlideFile(job.slide)}
            report, _ = tile_slides(slides, TileConfig(mpp=job.mpp), RunContext(run_config), prober=prober)
    assert [row["status"] for row in report.rows] == ["done"], report.rows
    cells = stored_chunks(job.out / "store.zarr")
    probe = pixels_of(job.out / "store.zarr", cells[len(cells) // 2])
    return result(watch, len(cells), probe, shards=phase.seconds, shards_cpu=phase.cpu)


def stored_chunks(store: Path) -> NDArray[np.int32]:
    """The chunks (row, col) of level 0 that the shard files list: int32 [N, 2], row-major."""
    from wsipipe.store import SlideStore

    pixels = SlideStore(store).pixels()
    assert (pixels.spec.chunk_px, pixels.spec.shard_px) == (CHUNK_PX, SHARD_PX), pixels.spec
    return np.argwhere(pixels.present()).astype(np.int32)


def pixels_of(store: Path, cell: NDArray[np.int32]) -> Pixels:
    """The pixels of a chunk as zarr-python reads them: uint8 [y, x, 3]."""
    import zarr

    y, x = (cell * CHUNK_PX).tolist()
    array = zarr.open_array(store / "0", mode="r")
    return np.moveaxis(np.asarray(array[:, y : y + CHUNK_PX, x : x + CHUNK_PX]), 0, -1)


def prepare(job: Job) -> dict[str, Any]:
    """Tile once and write down what everybody is to do: plan.npz, aligned.npz and off-grid.npz."""
    from wsipipe.store import SlideStore

    answer = tile(job)
    store = SlideStore(job.out / "store.zarr")
    cells = stored_chunks(store.path)
    width, height = store.grid.size_px
    Plan(cells, round(job.mpp / SLIDE_MPP), (width, height), store.pixels().spec.quality).save(job.out / "plan.npz")
    rng = np.random.default_rng(0)
    inside = cells[(cells[:, 0] < height // CHUNK_PX - 1) & (cells[:, 1] < width // CHUNK_PX - 1)]
    pool = np.sort(rng.choice(len(inside), min(POOL, len(inside)), replace=False))
    corners = inside[pool][:, ::-1] * CHUNK_PX
    order = rng.permutation(len(pool))[:READS].astype(np.int32)
    Windows(corners, order).save(job.out / "aligned.npz")
    Windows(corners + np.array(OFF_GRID_PX, np.int32), order).save(job.out / "off-grid.npz")
    return answer


def read(job: Job) -> dict[str, Any]:
    """Batches of windows through the reader of wsipipe with 2 threads."""
    from wsipipe.geometry import Window
    from wsipipe.store import SlideStore

    windows, store = Windows.load(job.windows), SlideStore(job.store)
    wanted = [Window(x, y, CHUNK_PX, CHUNK_PX) for x, y in windows.pool.tolist()]
    with ThreadPoolExecutor(WORKERS) as pool:
        return timed_reads(
            windows, lambda batch: np.moveaxis(store.read_batch([wanted[i] for i in batch.tolist()], pool), 1, -1)
        )


if __name__ == "__main__":
    os.fsync = lambda _: None
    run({"tile": tile, "prepare": prepare, "read": read}, __doc__)
