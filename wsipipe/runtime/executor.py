"""Executors: threads of this process, or the workers of a dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from wsipipe.errors import ConfigError, WsipipeError

T = TypeVar("T")
R = TypeVar("R")

SCHEDULER_S = 10.0
"""Seconds in which a dask scheduler must answer."""

_POLL_S = 5.0
"""Seconds between two checks that a silent dask cluster is still connected."""


def thread_count(workers: int) -> int:
    """`workers`; for 0, one thread per processor that this process may use."""
    return workers or len(os.sched_getaffinity(0))


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int, on_done: Callable[[T, R], None] | None = None
) -> None:
    """Run `function` on every item in threads, with at most twice `workers` items in flight.

    `on_done(item, result)` runs in the calling thread. The first exception cancels what has not started and is raised.
    """
    n = thread_count(workers)
    with ThreadPoolExecutor(n) as pool:
        pending: dict[Future[R], T] = {}

        def settle(wait_all: bool) -> None:
            while pending and (wait_all or len(pending) >= 2 * n):
                future = next(as_completed(pending))
                item = pending.pop(future)
                result = future.result()
                if on_done:
                    on_done(item, result)

        try:
            for item in items:
                settle(wait_all=False)
                pending[pool.submit(function, item)] = item
            settle(wait_all=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def executor(workers: int, dask: str = "") -> Iterator[tuple[Executor, int]]:
    """An executor and its number of workers: threads of this process, or the workers of a dask cluster.

    `dask` is the address of a scheduler (tcp://host:port) or a number of local processes. A task is a module-level
    function with picklable arguments; it writes its results to a file system that all workers share.
    Raises ConfigError if the scheduler does not answer, and WsipipeError if the connection to it breaks or if one task
    kills worker after worker.
    """
    if dask:
        with _dask_executor(dask) as pool:
            yield pool
        return
    n = thread_count(workers)
    threads = ThreadPoolExecutor(n)
    try:
        yield threads, n
    finally:
        threads.shutdown(cancel_futures=True)


@contextmanager
def _dask_executor(dask: str) -> Iterator[tuple[Executor, int]]:
    """The executor of a dask cluster and its number of threads, see `executor`."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ConfigError(
            "--dask needs the package distributed; install it with: pip install 'wsipipe[dask]'"
        ) from None
    with ExitStack() as stack:
        address = stack.enter_context(_local_cluster(int(dask))) if dask.isdecimal() else dask
        try:
            client = stack.enter_context(Client(address, timeout=SCHEDULER_S, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(f"--dask {address}: no scheduler answers there ({error})") from None
        n = sum(client.nthreads().values())
        if not n:
            raise ConfigError(f"--dask {address}: the scheduler has no workers; start some, e.g. dask worker {address}")
        try:
            yield stack.enter_context(client.get_executor(pure=False)), n
        except CancelledError:
            raise WsipipeError(
                f"--dask {address}: lost the connection to the scheduler; finished shards are kept; "
                "restart it and run the same command again"
            ) from None
        except KilledWorker as error:
            raise WsipipeError(
                f"--dask {address}: worker after worker died ({' '.join(str(error).split())}); finished shards are "
                "kept; give the workers more memory and run the same command again"
            ) from None


@contextmanager
def _local_cluster(processes: int) -> Iterator[str]:
    """A dask cluster of local processes; yields the address of its scheduler."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=processes,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # any free port: the usual one may be another cluster's
        scheduler_kwargs={"dashboard": False},
        silence_logs=40,
    ) as cluster:
        yield str(cluster.scheduler_address)


def wait_first(pool: Executor, futures: Collection[Future[R]]) -> set[Future[R]]:
    """Wait for at least one future of `pool`; returns those that are done.

    Raises CancelledError if `pool` belongs to a dask cluster that is lost: its futures would never finish.
    """
    while not (done := wait(futures, _POLL_S, return_when=FIRST_COMPLETED).done):
        if getattr(getattr(pool, "_client", None), "status", "") == "closed":
            raise CancelledError
    return done
