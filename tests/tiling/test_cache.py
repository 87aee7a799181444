"""Slides that are kept open: shared within a run and process, and never seen by another run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsipipe.errors import StoreError
from wsipipe.tiling import cache as caches
from wsipipe.tiling.cache import MAX_RUNS, MAX_SLIDES, SlideCache
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.prepare import prepare


def other_process(cache: SlideCache) -> SlideCache:
    """The cache that a task gets in the process of a worker."""
    return pickle.loads(pickle.dumps(cache))


def test_a_slide_is_opened_once_per_run_and_let_go_at_its_end(job: TileJob) -> None:
    with SlideCache() as cache:
        first = cache.slide(job)
        assert cache.slide(pickle.loads(pickle.dumps(job))) is first
    assert cache.slide(job) is not first


def test_no_run_sees_what_an_earlier_one_opened(
    job: TileJob, svs_writer: Callable[..., None], tissue_rgb: tuple[Any, Any], tmp_path: Path
) -> None:
    """The file changed between two runs of one long-lived worker: both jobs are equal, their slides are not."""
    path = Path(shutil.copy(job.file.path, tmp_path / "a.svs"))
    job = replace(job, file=replace(job.file, path=path))
    with SlideCache() as first:
        before = other_process(first).slide(job).info.fingerprint
        svs_writer(path, np.ascontiguousarray(tissue_rgb[0][:500, :700]))
        assert other_process(first).slide(job).info.fingerprint == before
    with SlideCache() as second:
        assert other_process(second).slide(job).info.size_px0 == (700, 500)


def test_the_tasks_of_a_run_share_one_cache_per_worker(job: TileJob) -> None:
    with SlideCache() as cache, SlideCache() as another:
        worker = other_process(cache)
        assert worker is not cache
        assert other_process(cache) is worker
        assert other_process(worker) is worker
        assert worker.run_id == cache.run_id != another.run_id
        assert other_process(another) is not worker
        assert worker.slide(job) is other_process(cache).slide(job)


def test_a_worker_keeps_few_runs_and_few_slides(job: TileJob, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(caches, "open_slide", lambda path, slide_id, *_: opened.append(slide_id))
    runs = [SlideCache() for _ in range(MAX_RUNS + 1)]
    workers = [other_process(cache) for cache in runs]
    assert other_process(runs[-1]) is workers[-1]
    assert other_process(runs[0]) is not workers[0]
    names = [str(i) for i in range(MAX_SLIDES + 1)]
    for name in (*names, names[-1], names[0]):
        workers[-1].slide(replace(job, slide_id=name))
    assert opened == [*names, names[0]]


def test_a_workspace_is_made_of_the_plan_on_disk(job: TileJob) -> None:
    with SlideCache() as cache:
        with pytest.raises(StoreError, match="plan is missing or damaged"):
            cache.workspace(job)
        prepare(job, cache)
        work = cache.workspace(job)
        assert cache.workspace(job) is work
        assert work.slide is cache.slide(job)
        planned = [tuple(c) for c in np.argwhere(work.plan.chunks).tolist()]
        assert work.cells(0, (0, 0)) == planned
        assert len(work.cells(1, (0, 0))) == 2
