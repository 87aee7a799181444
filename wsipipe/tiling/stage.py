"""The stage: tile slides into stores. Shards of several slides share one pool of workers."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsipipe.config.options import TileConfig
from wsipipe.errors import WsipipeError
from wsipipe.runtime.atomic import write_csv
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.executor import executor, wait_first
from wsipipe.runtime.ledger import Report, read_ledger
from wsipipe.runtime.lock import SlideLock
from wsipipe.runtime.progress import Progress
from wsipipe.slides import SlideFile
from wsipipe.slides.base import chosen_mpp
from wsipipe.slides.probe import Prober
from wsipipe.store import USABLE, SlideStore
from wsipipe.tiling.cache import SlideCache
from wsipipe.tiling.finish import finish_store
from wsipipe.tiling.job import TileJob, remove_partial
from wsipipe.tiling.levels import unreadable
from wsipipe.tiling.pixels import ShardTask, write_shard
from wsipipe.tiling.prepare import Prepared, prepare

log = logging.getLogger(__name__)

TASKS_PER_WORKER = 2
"""Tasks in flight per worker: one that runs and one that waits."""

CORRUPT_COLUMNS = ("slide", "level", "row", "col", "x_px", "y_px", "width_px", "height_px", "reason")


def run(
    inputs: Mapping[str, SlideFile], options: TileConfig, context: RunContext, *, prober: Prober | None = None
) -> tuple[Report, list[Path]]:
    """Tile slides (id -> file) into the folder of stores; returns the ledger and the existing stores, in input order.

    A store made from the same content with the same options is reused; a slide that a run left unfinished resumes at
    the next shard; a slide that fails is recorded and the others continue. On interruption the running shards finish,
    and everything written is kept for the next run. `prober` opens each slide in a child process first (default: one
    that this call starts).
    """
    folder = context.runs / "tile"
    jobs = _jobs(inputs, options, context, folder)
    report = context.report()
    with (
        SlideCache() as cache,
        executor(context.run.workers, context.run.dask) as (pool, workers),
        prober or Prober() as opener,
    ):
        scheduler = _Scheduler(pool, workers, cache, opener, report, context.progress)
        try:
            scheduler.run(jobs)
        finally:
            scheduler.stop()
            order = {job.slide_id: i for i, job in enumerate(jobs)}
            report.rows.sort(key=lambda row: order[row["item"]])
            report.write(folder / "tile.csv")
            _write_corrupt(folder / "corrupt.csv", scheduler.corrupt, set(scheduler.finished))
    return report, [context.stores / f"{i}.zarr" for i in inputs if i in scheduler.finished]


def _jobs(inputs: Mapping[str, SlideFile], options: TileConfig, context: RunContext, folder: Path) -> list[TileJob]:
    """One job per slide; QC images go to `folder`."""
    jobs = [
        TileJob(
            slide_id,
            file,
            options,
            context.stores / f"{slide_id}.zarr",
            context.overwrite,
            folder / f"{slide_id}.png" if options.qc_image else None,
        )
        for slide_id, file in inputs.items()
    ]
    return [job.absolute() for job in jobs] if context.run.dask else jobs


@dataclass(eq=False)
class _Slide:
    """The progress of one slide: shards that wait, tasks in flight, chunks written of chunks planned."""

    job: TileJob
    lock: SlideLock
    started: float = field(default_factory=time.monotonic)
    waiting: deque[ShardTask] = field(default_factory=deque)
    in_flight: int = 0
    done: int = 0
    total: int = 0
    planned: bool = False
    error: WsipipeError | None = None


class _Scheduler:
    """Keeps the pool busy: shards of the slides in progress first, then the next slide."""

    def __init__(
        self, pool: Executor, workers: int, cache: SlideCache, prober: Prober, report: Report, progress: Progress
    ) -> None:
        self._pool, self._max_tasks, self._cache = pool, TASKS_PER_WORKER * workers, cache
        self._prober, self._report, self._progress = prober, report, progress
        self._in_flight: dict[Future[Any], tuple[_Slide, Callable[[_Slide, Any], None]]] = {}
        self._active: list[_Slide] = []
        self._total = 0
        self.finished: dict[str, Path] = {}
        self.corrupt: list[dict[str, object]] = []

    def run(self, jobs: list[TileJob]) -> None:
        """Tile all jobs; every one gets its row in the ledger."""
        waiting = deque(jobs)
        self._total = len(jobs)
        self._report_progress("")
        while waiting or self._active:
            self._submit_tasks(waiting)
            if not self._in_flight:
                continue  # the started slides failed before they had a task
            for future in wait_first(self._pool, self._in_flight):
                slide, then = self._in_flight.pop(future)
                slide.in_flight -= 1
                try:
                    then(slide, future.result())
                except WsipipeError as error:
                    slide.error = slide.error or error
                    slide.waiting.clear()
                self._advance(slide)

    def stop(self) -> None:
        """Cancel the tasks that have not started, wait for the others, and release all slides."""
        wait([future for future in self._in_flight if not future.cancel()])
        for slide in self._active:
            slide.lock.release()

    def _submit_tasks(self, waiting: deque[TileJob]) -> None:
        """Fill the pool: shards of the oldest slide first, then start slides while there is room."""
        for slide in self._active:
            while slide.waiting and len(self._in_flight) < self._max_tasks:
                self._submit(slide, self._after_shard, write_shard, slide.job, slide.waiting.popleft())
        while waiting and len(self._in_flight) < self._max_tasks:
            self._start(waiting.popleft())
        if not waiting:
            self._prober.end()  # every slide has been opened; free its memory

    def _start(self, job: TileJob) -> None:
        """Lock and probe a slide, then submit its first task."""
        slide = _Slide(job, SlideLock(job.target.with_name(f".{job.target.name}.tiling"), f"{job.target}: tiling"))
        self._active.append(slide)
        try:
            slide.lock.acquire()
            override, source = chosen_mpp(job.file, job.config.mpp_override)
            self._prober.check(job.file.path, job.slide_id, override, source)
        except WsipipeError as error:
            slide.error = error
            self._advance(slide)
        else:
            self._submit(slide, self._after_prepare, prepare, job)

    def _submit(self, slide: _Slide, then: Callable[[_Slide, Any], None], task: Callable[..., Any], *what: Any) -> None:
        slide.in_flight += 1
        self._in_flight[self._pool.submit(task, *what, self._cache)] = (slide, then)

    def _after_prepare(self, slide: _Slide, prepared: Prepared) -> None:
        if prepared.status != "planned":
            self._record(slide, prepared.status)
            return
        slide.planned = True
        slide.waiting.extend(prepared.shards)
        slide.done, slide.total = prepared.written, prepared.written + sum(t.chunks for t in prepared.shards)
        if prepared.written:
            log.info("%s: resuming: %d of %d chunks already written", slide.job.slide_id, slide.done, slide.total)

    def _after_shard(self, slide: _Slide, chunks: int) -> None:
        slide.done += chunks
        self._progress(f"tile {slide.job.slide_id}", slide.done, slide.total)

    def _after_finish(self, slide: _Slide, _: None) -> None:
        self._record(slide, "done")

    def _advance(self, slide: _Slide) -> None:
        """After the last task in flight of a slide: record its failure, or finish its store."""
        if slide.in_flight or slide not in self._active:
            return
        if slide.error:
            if slide.lock.is_acquired:
                remove_partial(slide.job)
            with self._report.guard(slide.job.slide_id):
                raise slide.error
            self._close(slide)
        elif slide.planned and not slide.waiting:
            slide.planned = False
            self._submit(slide, self._after_finish, finish_store, slide.job)

    def _record(self, slide: _Slide, status: str) -> None:
        """Add the row of a slide whose store is complete."""
        job = slide.job
        store = SlideStore(job.target)
        table, bad = store.patches(), store.meta["bad"]
        for (*tile, reason), box_px in zip(bad, store.meta["bad_px"], strict=True):
            self.corrupt.append(dict(zip(CORRUPT_COLUMNS, (job.slide_id, *tile, *box_px, reason), strict=True)))
        note = str(store.meta.get("note", ""))
        if bad:
            note = f"{unreadable(len(bad))}; first error: {bad[0][3]}"
            log.warning("%s: %s", job.slide_id, note)
        if not len(table.cell):
            log.warning("%s: no tissue (%s)", job.slide_id, note or "no patch has enough of it; see --min-tissue")
            status = "empty" if status == "done" else status
        self._report.add(
            job.slide_id,
            status,
            note,
            patches=int((table.status == USABLE).sum()),
            corrupt=len(bad),
            copied=f"{store.meta['copied']:.0%}",
            seconds=f"{time.monotonic() - slide.started:.1f}",
            store=store.path,
        )
        self.finished[job.slide_id] = store.path
        self._close(slide)

    def _close(self, slide: _Slide) -> None:
        slide.lock.release()
        self._active.remove(slide)
        self._report_progress(slide.job.slide_id)

    def _report_progress(self, slide_id: str) -> None:
        self._progress("tile", len(self._report.rows), self._total, slide_id)


def _write_corrupt(path: Path, rows: list[dict[str, object]], tiled: set[str]) -> None:
    """Write the unreadable tiles of all slides, in working px; the rows of the `tiled` slides replace earlier ones."""
    earlier = [row for row in read_ledger(path) if row["slide"] not in tiled]
    if rows or earlier or path.exists():
        write_csv(path, CORRUPT_COLUMNS, [*earlier, *rows])
