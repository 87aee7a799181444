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
"""Time in which a dask scheduler has to answer."""


_LOOK_S = 5.0
"""Seconds after which a cluster that gives no result is looked after."""


def threads(workers: int) -> int:
    """`workers`, or one a processor that this process may use."""
    return workers or len(os.sched_getaffinity(0))


def map_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int, on_done: Callable[[T, R], None] | None = None
) -> None:
    """Run `function` on every item in threads; at most twice `workers` items are in flight.

    The first exception stops the submission of further items and is raised.
    """
    n = threads(workers)
    with ThreadPoolExecutor(n) as pool:
        flying: dict[Future[R], T] = {}

        def settle(wait_all: bool) -> None:
            while flying and (wait_all or len(flying) >= 2 * n):
                future = next(as_completed(flying))
                item = flying.pop(future)
                result = future.result()
                if on_done:
                    on_done(item, result)

        try:
            for item in items:
                settle(wait_all=False)
                flying[pool.submit(function, item)] = item
            settle(wait_all=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def executor(workers: int, dask: str = "") -> Iterator[tuple[Executor, int]]:
    """What runs tasks, and how many at a time: threads of this process, or the workers of a dask cluster.

    `dask` is the address of a scheduler (tcp://host:port) or a number: that many local processes. A task is a function
    at the top of a module, of picklable values; what it makes lies on a file system that all workers share.
    Raises ConfigError if the scheduler does not answer; WsipipeError if it is lost while the block runs, or if every
    worker that tries a task is.
    """
    if not dask:
        n = threads(workers)
        pool = ThreadPoolExecutor(n)
        try:
            yield pool, n
        finally:
            pool.shutdown(cancel_futures=True)
        return
    try:
        from distributed import Client, KilledWorker, LocalCluster
    except ImportError:
        raise ConfigError(
            "--dask needs the package distributed; install it with: pip install 'wsipipe[dask]'"
        ) from None
    with ExitStack() as stack:
        if dask.isdecimal():
            local = LocalCluster(
                n_workers=int(dask),
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any free port: the usual one may be another cluster's
                scheduler_kwargs={"dashboard": False},
                silence_logs=40,
            )
            dask = stack.enter_context(local).scheduler_address
        try:
            client = stack.enter_context(Client(dask, timeout=SCHEDULER_S, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(f"--dask {dask}: no scheduler answers there ({error})") from None
        n = sum(client.nthreads().values())
        if not n:
            raise ConfigError(f"--dask {dask}: the scheduler has no workers; start some, e.g. dask worker {dask}")
        try:
            yield stack.enter_context(client.get_executor(pure=False)), n
        except CancelledError:
            raise WsipipeError(
                f"--dask {dask}: the scheduler was lost; what is written stays; "
                "start it, and run the same command again"
            ) from None
        except KilledWorker as error:
            raise WsipipeError(
                f"--dask {dask}: worker after worker died ({' '.join(str(error).split())}); what is written stays; "
                "give them more memory, and run the same command again"
            ) from None


def first_done(pool: Executor, futures: Collection[Future[R]]) -> set[Future[R]]:
    """Wait until one or more of the futures of `pool` are done; CancelledError if its dask cluster is lost.

    The results of a lost cluster never come: it is looked after once in a while.
    """
    while not (done := wait(futures, _LOOK_S, return_when=FIRST_COMPLETED).done):
        if getattr(getattr(pool, "_client", None), "status", "") == "closed":
            raise CancelledError
    return done
