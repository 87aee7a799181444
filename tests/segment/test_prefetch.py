"""Reading, network and taking overlap, keep the order, stay bounded, and pass errors of any step on."""

from __future__ import annotations

import threading
import time

import pytest

from wsipipe.segment.prefetch import PrefetchPipeline
from wsipipe.segment.stitch import READ_AHEAD, WAITING


def test_items_are_taken_in_order_with_their_answers() -> None:
    taken: list[tuple[int, int]] = []
    told: list[int] = []
    ended: list[int] = []

    def read(items: list[int]) -> list[int]:
        time.sleep(0.001 * (items[0] % 3))  # later batches may be read first
        return items

    flow = PrefetchPipeline(
        read=read,
        network=lambda x: lambda: [10 * i for i in x],
        take=lambda items, answers: taken.extend(zip(items, answers, strict=True)),
        end=lambda: ended.append(len(taken)),
        readers=3,
    )
    pace = flow.run(range(23), 4, told.append)
    assert taken == [(i, 10 * i) for i in range(23)]
    assert told == [4, 8, 12, 16, 20, 23]
    assert ended == [23]
    assert pace.items == 23
    assert 0 <= pace.busy <= 1


def test_nothing_to_do_is_done_at_once() -> None:
    pace = PrefetchPipeline(read=pytest.fail, network=pytest.fail, take=pytest.fail).run([], 4)
    assert pace.items == 0


def test_the_network_is_at_work_while_others_read_and_take() -> None:
    def wait(*_: object) -> None:
        time.sleep(0.02)

    def network(x: object) -> object:
        time.sleep(0.02)
        return lambda: 0

    start = time.perf_counter()
    pace = PrefetchPipeline(read=wait_and_return, network=network, take=wait, readers=2).run(range(20), 1)
    seconds = time.perf_counter() - start
    assert seconds < 20 * 0.06 * 0.75, "the three steps took turns"
    assert pace.busy > 0.5


def wait_and_return(items: list[int]) -> list[int]:
    time.sleep(0.02)
    return items


def test_a_device_computes_while_the_answer_before_is_fetched() -> None:
    events: list[str] = []

    def network(x: list[int]) -> object:
        events.append(f"launch {x[0]}")
        return lambda: events.append(f"fetch {x[0]}") or 0

    PrefetchPipeline(read=list, network=network, take=lambda items, answer: None).run(range(3), 1)
    assert events == ["launch 0", "launch 1", "fetch 0", "launch 2", "fetch 1", "fetch 2"]


def test_a_slow_taker_holds_the_others_back() -> None:
    read, taken, lead = [], [], []
    lock = threading.Lock()

    def note(items: list[int]) -> list[int]:
        with lock:
            read.append(items[0])
        return items

    def take(items: list[int], answer: object) -> None:
        time.sleep(0.005)
        with lock:
            taken.append(items[0])
            lead.append(len(read) - len(taken))

    PrefetchPipeline(read=note, network=lambda x: lambda: x, take=take, readers=8).run(range(60), 1)
    assert taken == list(range(60))
    assert max(lead) <= READ_AHEAD + WAITING + 3


@pytest.mark.parametrize("step", ["read", "network", "answer", "take"])
@pytest.mark.parametrize("at", [0, 3, 9])
def test_an_error_of_any_step_stops_all_and_is_raised(step: str, at: int) -> None:
    taken: list[int] = []

    def may_fail(name: str, i: int) -> None:
        if name == step and i == at:
            raise KeyError(name)

    def read(items: list[int]) -> list[int]:
        may_fail("read", items[0])
        return items

    def network(x: list[int]) -> object:
        may_fail("network", x[0])
        return lambda: may_fail("answer", x[0]) or x

    def take(items: list[int], answer: list[int]) -> None:
        may_fail("take", items[0])
        taken.extend(items)

    with pytest.raises(KeyError, match=step):
        PrefetchPipeline(read=read, network=network, take=take, readers=2).run(range(10), 1)
    assert taken == list(range(len(taken)))
    assert len(taken) <= at + WAITING + 2
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]
