"""Two worker processes that have imported and opened everything before the stopwatch starts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from multiprocessing.synchronize import Barrier
from typing import Any, Self

from common import WORKERS

_work: Callable[[Any], Any] | None = None


def _start(make: Callable[[], Callable[[Any], Any]], ready: Barrier) -> None:
    global _work  # noqa: PLW0603  the only way from a pool's initializer to its tasks
    _work = make()
    ready.wait()


def _call(item: Any) -> Any:
    assert _work is not None
    return _work(item)


class Workers:
    """A pool in which `make()` was called once a process; its answer is called for every item."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(WORKERS + 1)
        self._pool = context.Pool(WORKERS, _start, (make, ready))
        ready.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def map(self, items: Iterable[Any]) -> list[Any]:
        """The answers in the order of `items`, each handed out as soon as a process is free."""
        return self._pool.map(_call, items, chunksize=1)
