"""Reading, network and writing in parallel: threads prefetch, the caller computes, one thread consumes results."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from wsipipe.segment.stitch import READ_AHEAD, WAITING

Item = TypeVar("Item")
Input = TypeVar("Input")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Throughput:
    """Items done, seconds taken, and seconds in which the network was busy."""

    items: int
    seconds: float
    network_s: float

    @property
    def busy(self) -> float:
        """Fraction of the time, 0..1, in which the network did not wait for reading or writing."""
        return self.network_s / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class PrefetchPipeline(Generic[Item, Input, Answer]):
    """Three steps per batch of items, with several batches in flight.

    read: runs in `readers` threads, ahead of the network. network: runs in the caller's thread and may return before
    the device has finished; calling what it returns waits for the result. take: runs in one other thread, in the order
    of the items. end: runs after the last batch. The queues between the steps are bounded.
    """

    read: Callable[[Sequence[Item]], Input]
    network: Callable[[Input], Callable[[], Answer]]
    take: Callable[[Sequence[Item], Answer], None]
    end: Callable[[], None] = lambda: None
    readers: int = 1

    def run(self, items: Iterable[Item], batch: int, on_done: Callable[[int], None] | None = None) -> Throughput:
        """Process all items; `on_done` gets the number of items done. The first error of any step is raised."""
        started, busy, count = time.perf_counter(), 0.0, 0
        take, groups = _until_it_fails(self.take), _batches(items, batch)
        with ThreadPoolExecutor(self.readers) as reading, ThreadPoolExecutor(1) as taking:
            ahead: deque[tuple[list[Item], Future[Input]]] = deque()
            behind: deque[Future[None]] = deque()
            on_device: tuple[list[Item], Callable[[], Answer]] | None = None
            try:
                while True:
                    most = min(READ_AHEAD, self.readers + 1)
                    ahead.extend((g, reading.submit(self.read, g)) for g in islice(groups, most - len(ahead)))
                    group, future = ahead.popleft() if ahead else ([], None)
                    given = future.result() if future else None
                    since = time.perf_counter()
                    launched = (group, self.network(given)) if given is not None else None
                    answer = on_device[1]() if on_device else None
                    busy += time.perf_counter() - since
                    if on_device and answer is not None:
                        behind.append(taking.submit(take, on_device[0], answer))
                        count += len(on_device[0])
                        if on_done:
                            on_done(count)
                    if launched is None:
                        break
                    on_device = launched
                    while len(behind) > WAITING:
                        behind.popleft().result()
                while behind:
                    behind.popleft().result()
            except BaseException:
                reading.shutdown(wait=False, cancel_futures=True)
                taking.shutdown(wait=False, cancel_futures=True)
                raise
        self.end()
        return Throughput(count, time.perf_counter() - started, busy)


def _until_it_fails(take: Callable[[Sequence[Item], Answer], None]) -> Callable[[Sequence[Item], Answer], None]:
    """`take`, which does nothing after its first failure: later batches must not be added without the missing one."""
    failed = False

    def guarded(items: Sequence[Item], answer: Answer) -> None:
        nonlocal failed
        if failed:
            return
        try:
            take(items, answer)
        except BaseException:
            failed = True
            raise

    return guarded


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some
