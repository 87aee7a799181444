"""SlideCache: the slides, plans and unfinished stores that the tasks of one run keep open in a process."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType

from wsipipe.slides import Slide, open_slide
from wsipipe.slides.base import chosen_mpp
from wsipipe.store import SlideStore
from wsipipe.store.shards import Cell
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.records import PLAN
from wsipipe.tiling.slide_plan import SlidePlan

MAX_SLIDES = 4
"""Slides that a cache keeps open; the least recently used one is dropped first."""

MAX_RUNS = 2
"""Runs whose caches a worker process keeps."""


class Workspace:
    """What writing the shards of a slide needs: the open slide, its plan and its unfinished store."""

    def __init__(self, job: TileJob, slide: Slide) -> None:
        self.slide = slide
        self.plan = SlidePlan.load(job.partial / PLAN)
        self.store = SlideStore(job.partial)

    def cells(self, level: int, shard: Cell) -> list[Cell]:
        """The planned chunks of a shard, row-major."""
        cells = self.store.pixels(level).spec.chunks_of_shard(shard)
        return [c for c in cells if self.plan.chunks[c]] if level == 0 else cells


class SlideCache:
    """Open slides and workspaces, shared by the tasks of one run within one process. Thread-safe.

    Opening a slide takes longer than writing a shard of it. The run owns the cache: `with SlideCache() as cache` clears
    it at the end. Tasks get the cache as an argument. Its pickle contains only `run_id`: a worker process unpickles it
    to its own cache of that run. So no run reads a slide that an earlier run opened: the file may have changed since.

    A slide is closed when the cache and the last task that reads it have dropped it, never under a running task.
    """

    def __init__(self, run_id: str = "") -> None:
        self.run_id = run_id or uuid.uuid4().hex
        slides = lru_cache(MAX_SLIDES)(_open)
        self._slides = slides
        self._workspaces = lru_cache(MAX_SLIDES)(lambda job: Workspace(job, slides(job)))

    def __enter__(self) -> SlideCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def __reduce__(self) -> tuple[Callable[[str], SlideCache], tuple[str]]:
        return _cache_of_run, (self.run_id,)

    def slide(self, job: TileJob) -> Slide:
        """The open slide of a job, at the mpp that the user gives, if any."""
        return self._slides(job)

    def workspace(self, job: TileJob) -> Workspace:
        """The workspace of a planned job. Raises StoreError if its plan or its unfinished store is damaged."""
        return self._workspaces(job)

    def clear(self) -> None:
        """Drop all slides and workspaces."""
        self._workspaces.cache_clear()
        self._slides.cache_clear()


def _open(job: TileJob) -> Slide:
    override, source = chosen_mpp(job.file, job.config.mpp_override)
    return open_slide(job.file.path, job.slide_id, override, source)


@lru_cache(MAX_RUNS)
def _cache_of_run(run_id: str) -> SlideCache:
    """The cache of a run in this worker process; older runs lose theirs."""
    return SlideCache(run_id)
