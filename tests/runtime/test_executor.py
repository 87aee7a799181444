"""Threads and executors: bounded, in order of their errors, and clear about a cluster that is not there."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from wsipipe.errors import ConfigError, SlideError
from wsipipe.runtime import executor as executors
from wsipipe.runtime.executor import executor, map_in_threads, thread_count


def test_map_in_threads_gives_each_result_with_its_item_whatever_the_order() -> None:
    done: dict[int, int] = {}

    def slow_first(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    map_in_threads(slow_first, range(40), 4, done.__setitem__)
    assert done == {i: i * i for i in range(40)}


def test_map_in_threads_calls_back_from_the_calling_thread() -> None:
    callers = set()
    map_in_threads(lambda i: i, range(20), 4, lambda i, r: callers.add(threading.get_ident()))
    assert callers == {threading.get_ident()}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_map_in_threads_bounds_what_is_in_flight(workers: int) -> None:
    taken, settled, most = 0, 0, 0

    def items() -> Any:
        nonlocal taken, most
        for i in range(60):
            taken += 1
            most = max(most, taken - settled)
            yield i

    def on_done(item: int, result: int) -> None:
        nonlocal settled
        settled += 1

    map_in_threads(lambda i: i, items(), workers, on_done)
    assert settled == 60
    assert most <= 2 * workers + 1  # the one just taken from the iterator is not yet submitted


@pytest.mark.parametrize("workers", [1, 3])
def test_map_in_threads_raises_the_first_error_and_submits_no_more(workers: int) -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise SlideError("slide 3")
        return i

    with pytest.raises(SlideError, match="slide 3"):
        map_in_threads(work, range(10_000), workers)
    assert len(begun) < 3 + 6 * workers
    count = len(begun)
    time.sleep(0.01)
    assert len(begun) == count  # nothing runs on behind the error


def test_map_in_threads_of_nothing_does_nothing() -> None:
    called: list[object] = []
    map_in_threads(called.append, [], 2, lambda *result: called.append(result))
    assert called == []


def test_thread_count_is_that_of_the_processors_this_process_may_use() -> None:
    assert thread_count(3) == 3
    assert thread_count(0) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_executor_of_threads_runs_so_many_tasks_at_a_time(workers: int) -> None:
    together = threading.Barrier(workers)
    with executor(workers) as (pool, n):
        assert n == workers
        assert len([f.result(timeout=30) for f in [pool.submit(together.wait, 20) for _ in range(workers)]]) == workers
    with executor(0) as (_, n):
        assert n == thread_count(0)


def test_an_executor_that_ends_in_an_error_takes_back_what_has_not_begun() -> None:
    begun: list[int] = []

    def task(i: int) -> None:
        begun.append(i)
        time.sleep(0.01)

    def breaks() -> None:
        with executor(1) as (pool, _):
            for i in range(50):
                pool.submit(task, i)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert len(begun) < 25


def test_dask_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = r"--dask needs the package distributed; install it with: pip install"
    with pytest.raises(ConfigError, match=message), executor(1, "2"):
        pass


def test_an_address_that_is_none_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "SCHEDULER_S", 0.5)
    message = r"--dask nowhere://x: no scheduler answers there"
    with pytest.raises(ConfigError, match=message), executor(1, "nowhere://x"):
        pass


def test_what_a_lost_cluster_owes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_POLL_S", 0.01)
    never: Future[None] = Future()
    pool: Any = SimpleNamespace(_client=SimpleNamespace(status="closed"))
    with pytest.raises(CancelledError):
        executors.wait_first(pool, [never])
    with ThreadPoolExecutor(1) as threads_alone:
        late = threads_alone.submit(time.sleep, 0.1)  # longer than a look: there is no cluster to be lost
        assert executors.wait_first(threads_alone, [never, late]) == {late}
