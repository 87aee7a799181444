"""Tile many slides: shards of all of them go through one pool, and each slide's store is put in place when complete."""

from __future__ import annotations

import logging
import time
import uuid
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
from wsipipe.runtime.executor import executor, first_done
from wsipipe.runtime.ledger import Report, read_ledger
from wsipipe.runtime.lock import SlideLock
from wsipipe.runtime.progress import Progress
from wsipipe.slides import SlideFile
from wsipipe.slides.base import chosen_mpp
from wsipipe.slides.probe import Prober
from wsipipe.store import USABLE, SlideStore
from wsipipe.tiling.finish import finish
from wsipipe.tiling.job import TileJob, discard, forget
from wsipipe.tiling.pixels import ShardTask, write_shard
from wsipipe.tiling.prepare import Prepared, prepare

log = logging.getLogger(__name__)

AHEAD = 2
"""Tasks in flight for each worker: one that runs and one that waits."""

CORRUPT_COLUMNS = ("slide", "level", "row", "col", "x_px", "y_px", "width_px", "height_px", "reason")


def run(
    inputs: Mapping[str, SlideFile], options: TileConfig, context: RunContext, *, prober: Prober | None = None
) -> tuple[Report, list[Path]]:
    """Tile every slide into the folder of stores; returns the ledger and the stores that exist now, in the given order.

    A slide whose store was made from the same content with the same options is skipped, one that was cut off goes on
    at its next shard, and one that fails is recorded and costs only itself. Interrupted, the shards that are running
    end, and all that is written stays for the next run. Slides are opened first by `prober` (default: one of its own).
    """
    folder = context.runs / "tile"
    call = uuid.uuid4().hex
    jobs = [
        TileJob(
            slide_id,
            file,
            options,
            context.stores / f"{slide_id}.zarr",
            context.overwrite,
            folder / f"{slide_id}.png" if options.qc_image else None,
            call,
        )
        for slide_id, file in inputs.items()
    ]
    if context.run.dask:
        jobs = [job.absolute() for job in jobs]
    report = context.report()
    with executor(context.run.workers, context.run.dask) as (pool, workers), prober or Prober() as opener:
        line = _Scheduler(pool, workers, opener, report, context.progress)
        try:
            line.run(jobs)
        finally:
            line.stop()
            forget()
            order = {job.slide_id: i for i, job in enumerate(jobs)}
            report.rows.sort(key=lambda row: order[row["item"]])
            report.write(folder / "tile.csv")
            _write_corrupt(folder / "corrupt.csv", line.corrupt, set(line.finished))
    return report, [context.stores / f"{i}.zarr" for i in inputs if i in line.finished]


@dataclass(eq=False)
class _Slide:
    """A slide on its way through the line."""

    job: TileJob
    hold: SlideLock
    began: float = field(default_factory=time.monotonic)
    waiting: deque[ShardTask] = field(default_factory=deque)
    flying: int = 0
    done: int = 0
    total: int = 0
    ready: bool = False
    error: WsipipeError | None = None


class _Scheduler:
    """Keeps the pool busy: shards of the slides under way first, then the next slide."""

    def __init__(self, pool: Executor, workers: int, prober: Prober, report: Report, progress: Progress) -> None:
        self._pool, self._most = pool, AHEAD * workers
        self._prober, self._report, self._progress = prober, report, progress
        self._flying: dict[Future[Any], tuple[_Slide, Callable[[_Slide, Any], None]]] = {}
        self._active: list[_Slide] = []
        self._total = 0
        self.finished: dict[str, Path] = {}
        self.corrupt: list[dict[str, object]] = []

    def run(self, jobs: list[TileJob]) -> None:
        """All jobs, until each has its row in the ledger."""
        waiting = deque(jobs)
        self._total = len(jobs)
        self._tell("")
        while waiting or self._active:
            self._fill(waiting)
            if not self._flying:
                continue  # what was started has failed before it came to the pool
            for future in first_done(self._pool, self._flying):
                slide, then = self._flying.pop(future)
                slide.flying -= 1
                try:
                    then(slide, future.result())
                except WsipipeError as error:
                    slide.error = slide.error or error
                    slide.waiting.clear()
                self._go_on(slide)

    def stop(self) -> None:
        """Take back what has not begun, wait for what has, and let go of every slide."""
        wait([future for future in self._flying if not future.cancel()])
        for slide in self._active:
            slide.hold.release()

    def _fill(self, waiting: deque[TileJob]) -> None:
        """Give the pool work, oldest slide first, and begin slides while it has room."""
        for slide in self._active:
            while slide.waiting and len(self._flying) < self._most:
                self._submit(slide, self._written, write_shard, slide.job, slide.waiting.popleft())
        while waiting and len(self._flying) < self._most:
            self._begin(waiting.popleft())
        if not waiting:
            self._prober.end()  # all slides have been opened: its memory is better used

    def _begin(self, job: TileJob) -> None:
        slide = _Slide(job, SlideLock(job.target.with_name(f".{job.target.name}.tiling"), f"{job.target}: tiling it"))
        self._active.append(slide)
        try:
            slide.hold.take()
            override, source = chosen_mpp(job.file, job.config.mpp_override)
            self._prober.check(job.file.path, job.slide_id, override, source)
        except WsipipeError as error:
            slide.error = error
            self._go_on(slide)
        else:
            self._submit(slide, self._prepared, prepare, job)

    def _submit(self, slide: _Slide, then: Callable[[_Slide, Any], None], task: Callable[..., Any], *what: Any) -> None:
        slide.flying += 1
        self._flying[self._pool.submit(task, *what)] = (slide, then)

    def _prepared(self, slide: _Slide, plan: Prepared) -> None:
        if plan.status != "planned":
            self._end(slide, plan.status)
            return
        slide.ready = True
        slide.waiting.extend(plan.shards)
        slide.done, slide.total = plan.written, plan.written + sum(t.chunks for t in plan.shards)
        if plan.written:
            log.info("%s: goes on: %d of %d chunks are there", slide.job.slide_id, plan.written, slide.total)

    def _written(self, slide: _Slide, chunks: int) -> None:
        slide.done += chunks
        self._progress(f"tile {slide.job.slide_id}", slide.done, slide.total)

    def _go_on(self, slide: _Slide) -> None:
        """After a task of a slide: finish it if that was its last shard, or record that it failed."""
        if slide.flying or slide not in self._active:
            return
        if slide.error:
            if slide.hold.is_held:
                discard(slide.job)
            with self._report.guard(slide.job.slide_id):
                raise slide.error
            self._leave(slide)
        elif slide.ready and not slide.waiting:
            slide.ready = False
            self._submit(slide, self._complete, finish, slide.job)

    def _complete(self, slide: _Slide, _: None) -> None:
        self._end(slide, "done")

    def _end(self, slide: _Slide, status: str) -> None:
        """The row of a slide whose store is there."""
        job = slide.job
        store = SlideStore(job.target)
        table, bad = store.patches(), store.meta["bad"]
        for (*place, why), box_px in zip(bad, store.meta["bad_px"], strict=True):
            self.corrupt.append(dict(zip(CORRUPT_COLUMNS, (job.slide_id, *place, *box_px, why), strict=True)))
        reason = str(store.meta.get("note", ""))
        if bad:
            reason = f"{len(bad)} of its tiles cannot be read, e.g. {bad[0][3]}"
            log.warning("%s: %s", job.slide_id, reason)
        if not len(table.cell):
            log.warning("%s: no tissue (%s)", job.slide_id, reason or "no patch holds enough of it; see --min-tissue")
            status = "empty" if status == "done" else status
        self._report.add(
            job.slide_id,
            status,
            reason,
            patches=int((table.status == USABLE).sum()),
            corrupt=len(bad),
            copied=f"{store.meta['copied']:.0%}",
            seconds=f"{time.monotonic() - slide.began:.1f}",
            store=store.path,
        )
        self.finished[job.slide_id] = store.path
        self._leave(slide)

    def _leave(self, slide: _Slide) -> None:
        slide.hold.release()
        self._active.remove(slide)
        self._tell(slide.job.slide_id)

    def _tell(self, slide_id: str) -> None:
        self._progress("tile", len(self._report.rows), self._total, slide_id)


def _write_corrupt(path: Path, rows: list[dict[str, object]], tiled: set[str]) -> None:
    """Bad tiles of all slides, one a row, in px of the store; slides of this call replace their earlier rows."""
    earlier = [row for row in read_ledger(path) if row["slide"] not in tiled]
    if rows or earlier or path.exists():
        write_csv(path, CORRUPT_COLUMNS, [*earlier, *rows])
