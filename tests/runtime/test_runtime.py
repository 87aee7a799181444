"""Threads, digests, atomic files, and the ledger that owns the exit code."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsipipe.errors import ConfigError, SlideError, StoreError
from wsipipe.runtime import device as devices
from wsipipe.runtime import executor as executors
from wsipipe.runtime.atomic import write_json
from wsipipe.runtime.digest import digest
from wsipipe.runtime.executor import executor, map_threads, threads
from wsipipe.runtime.ledger import Report, read_ledger
from wsipipe.runtime.lock import SlideLock


def report(max_failed: str, failed: int, total: int) -> Report:
    ledger = Report(max_failed)
    for i in range(total):
        ledger.add(f"s{i}", "failed" if i < failed else "done")
    return ledger


@pytest.mark.parametrize(
    ("max_failed", "failed", "total", "code"),
    [
        ("0", 0, 5, 0), ("0", 1, 5, 1), ("2", 2, 5, 0), ("2", 3, 5, 1),
        ("0%", 0, 5, 0), ("0%", 1, 5, 1), ("20%", 1, 5, 0), ("20%", 2, 5, 1), ("19%", 1, 5, 1), ("100%", 5, 5, 0),
        ("0", 0, 0, 0), ("5%", 0, 0, 0),
    ],
)  # fmt: skip
def test_exit_code_allows_a_number_or_a_share_of_failures(max_failed: str, failed: int, total: int, code: int):
    assert report(max_failed, failed, total).exit_code == code


def test_skipped_and_empty_items_are_no_failures():
    ledger = Report()
    ledger.add("a", "skipped")
    ledger.add("b", "empty", "no tissue")
    assert ledger.exit_code == 0
    assert [r["item"] for r in ledger.of("empty")] == ["b"]


def test_ledger_is_a_csv_of_all_items_and_columns(tmp_path: Path):
    ledger = Report()
    ledger.add("a", "done", patches=12, seconds="0.5")
    ledger.failed("b", SlideError("cannot,\n   be read"))
    path = tmp_path / "new" / "tile.csv"
    ledger.write(path)
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert rows == [
        {"item": "a", "status": "done", "reason": "", "patches": "12", "seconds": "0.5"},
        {"item": "b", "status": "failed", "reason": "cannot, be read", "patches": "", "seconds": ""},
    ]
    assert sorted(p.name for p in path.parent.iterdir()) == [".tile.csv.lock", "tile.csv"]


def test_an_empty_ledger_has_its_header(tmp_path: Path):
    Report().write(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().strip() == "item,status,reason"


def test_digest_tells_values_apart_and_forgets_only_the_order_of_keys():
    assert digest({"a": 1, "b": (2.5, None)}) == digest({"b": [2.5, None], "a": 1})
    assert len({digest(1), digest("1"), digest(1, 2), digest([1, 2]), digest(), digest({"a": 1})}) == 6
    assert len(digest("x")) == 32


def test_digest_is_the_same_in_every_process_and_version():
    assert digest("tile", {"mpp": 0.5}) == "91e18aa105ea8de8cf71787f44620630"
    code = "from wsipipe.runtime.digest import digest; print(digest('tile', {'mpp': 0.5}))"
    for seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert run.stdout.strip() == digest("tile", {"mpp": 0.5})


def test_map_threads_gives_each_result_with_its_item_whatever_the_order():
    done: dict[int, int] = {}

    def slow_first(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    map_threads(slow_first, range(40), 4, done.__setitem__)
    assert done == {i: i * i for i in range(40)}


def test_map_threads_calls_back_from_the_calling_thread():
    callers = set()
    map_threads(lambda i: i, range(20), 4, lambda i, r: callers.add(threading.get_ident()))
    assert callers == {threading.get_ident()}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_map_threads_bounds_what_is_in_flight(workers: int):
    taken, settled, most = 0, 0, 0

    def items():
        nonlocal taken, most
        for i in range(60):
            taken += 1
            most = max(most, taken - settled)
            yield i

    def on_done(item: int, result: int) -> None:
        nonlocal settled
        settled += 1

    map_threads(lambda i: i, items(), workers, on_done)
    assert settled == 60
    assert most <= 2 * workers + 1  # the one just taken from the iterator is not yet submitted


@pytest.mark.parametrize("workers", [1, 3])
def test_map_threads_raises_the_first_error_and_submits_no_more(workers: int):
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise SlideError("slide 3")
        return i

    with pytest.raises(SlideError, match="slide 3"):
        map_threads(work, range(10_000), workers)
    assert len(begun) < 3 + 6 * workers
    count = len(begun)
    time.sleep(0.01)
    assert len(begun) == count  # nothing runs on behind the error


def test_map_threads_of_nothing_does_nothing():
    called: list[object] = []
    map_threads(called.append, [], 2, lambda *result: called.append(result))
    assert called == []


def test_threads_counts_the_processors_this_process_may_use():
    assert threads(3) == 3
    assert threads(0) == len(os.sched_getaffinity(0))


def test_write_json_replaces_the_file_and_leaves_no_partial(tmp_path: Path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": 1, "a": [1, 2]})
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_write_json_that_fails_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, loop)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_device_auto_and_cpu():
    assert devices.device("cpu").type == "cpu"
    assert devices.device("auto").type in ("cpu", "cuda")


def test_an_unknown_device_says_what_is_expected():
    with pytest.raises(ConfigError, match="device 'gpu': expected auto, cpu or cuda:N"):
        devices.device("gpu")


def test_a_missing_gpu_says_how_many_there_are():
    with pytest.raises(ConfigError, match=r"device cuda:99: \d+ CUDA devices found; use --device auto"):
        devices.device("cuda:99")


def test_a_cpu_computes_in_float32_whatever_it_could_do():
    """In bfloat16 the weights' gradient of this convolution is memory that nobody wrote, on CPUs that compute in it."""
    import torch

    x, w = torch.ones(8, 64, 1, 1), torch.ones(64, 64, 3, 3, requires_grad=True)
    with devices.autocast(devices.device("cpu")):
        y = torch.nn.functional.conv2d(x, w, stride=2, padding=1)
    assert y.dtype == torch.float32
    y.sum().backward()
    expected = torch.zeros(64, 64, 3, 3)
    expected[:, :, 1, 1] = 8
    torch.testing.assert_close(w.grad, expected)


def test_a_guarded_failure_costs_its_item_alone_and_a_configuration_error_all(caplog: pytest.LogCaptureFixture):
    report = Report()
    for item in ("a", "b", "c"):
        with report.guard(item):
            if item == "b":
                raise SlideError("b.svs: no pixels")
            report.add(item, "done")
    assert [(r["item"], r["status"]) for r in report.rows] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert "b: failed: b.svs: no pixels" in caplog.text
    with pytest.raises(ConfigError, match="wrong for all"), report.guard("d"):
        raise ConfigError("wrong for all")
    with pytest.raises(ZeroDivisionError), report.guard("e"):
        raise ZeroDivisionError
    assert len(report.rows) == 3


def test_table_aligns_columns_and_counts():
    ledger = Report()
    ledger.add("a", "done", patches=12, copied="100%")
    ledger.add("a longer name", "empty", "no tissue", patches=0)
    ledger.failed("b", SlideError("b.svs: gone"))
    head, *rows, counts = ledger.table(("patches", "copied")).splitlines()
    assert counts == "1 done, 1 empty, 1 failed"
    assert head.split() == ["slide", "status", "patches", "copied", "reason"]
    assert [r.split()[-1] for r in rows] == ["100%", "tissue", "gone"]
    for column in ("status", "patches", "copied"):
        at = head.index(column)
        assert all(row[at - 2 : at].strip() == "" for row in rows)
    assert rows[0][head.index("patches") :].startswith("12 ")
    assert rows[2][head.index("reason") :] == "b.svs: gone"
    assert all(line == line.rstrip() for line in (head, *rows))


def test_table_of_many_shows_those_that_are_not_done():
    ledger = report("0", 2, 100)
    lines = ledger.table(("patches",)).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["s0", "s1"]
    assert lines[-1] == "98 done, 2 failed"
    assert len(ledger.table((), most=100).splitlines()) == 102
    for status in ("done", "skipped", "added"):
        ledger.rows = [{"item": f"s{i}", "status": status, "reason": ""} for i in range(41)]
        assert [line.split()[0] for line in ledger.table(()).splitlines()] == ["slide", "41"]


def test_the_ledger_keeps_items_of_earlier_calls(tmp_path: Path):
    path = tmp_path / "tile.csv"
    first, second = Report(), Report()
    first.add("a", "failed", "gone")
    first.add("b", "done", patches=3)
    first.write(path)
    second.add("a", "done", copied="100%")
    second.write(path)
    assert read_ledger(path) == [
        {"item": "a", "status": "done", "reason": "", "patches": "", "copied": "100%"},
        {"item": "b", "status": "done", "reason": "", "patches": "3", "copied": ""},
    ]
    assert read_ledger(tmp_path / "none.csv") == []


@pytest.mark.parametrize("workers", [1, 3])
def test_an_executor_of_threads_runs_so_many_tasks_at_a_time(workers: int):
    together = threading.Barrier(workers)
    with executor(workers) as (pool, n):
        assert n == workers
        assert len([f.result(timeout=30) for f in [pool.submit(together.wait, 20) for _ in range(workers)]]) == workers
    with executor(0) as (_, n):
        assert n == threads(0)


def test_an_executor_that_ends_in_an_error_takes_back_what_has_not_begun():
    begun: list[int] = []

    def breaks() -> None:
        with executor(1) as (pool, _):
            for i in range(50):
                pool.submit(lambda i=i: (begun.append(i), time.sleep(0.01)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert len(begun) < 25


def test_dask_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = r"--dask needs the package distributed; install it with: pip install"
    with pytest.raises(ConfigError, match=message), executor(1, "2"):
        pass


def test_an_address_that_is_none_says_so(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "SCHEDULER_S", 0.5)
    message = r"--dask nowhere://x: no scheduler answers there"
    with pytest.raises(ConfigError, match=message), executor(1, "nowhere://x"):
        pass


def test_a_hold_is_exclusive_and_names_its_holder(tmp_path: Path):
    file = tmp_path / "new" / ".a.tiling"
    mine, theirs = SlideLock(file, "a.zarr: tiling it"), SlideLock(file, "a.zarr: tiling it")
    mine.take()
    assert (mine.is_held, theirs.is_held) == (True, False)
    message = (
        rf"a\.zarr: tiling it is held by process {os.getpid()} on .+ since \d{{4}}-\d\d-\d\d .+; wait for it to end"
    )
    for _ in range(2):  # who asks does not wipe out the name
        with pytest.raises(StoreError, match=message):
            theirs.take()
    theirs.release()
    assert file.exists()
    mine.release()
    assert (mine.is_held, list(file.parent.iterdir())) == (False, [])
    mine.release()
    theirs.take()
    theirs.release()
    assert list(file.parent.iterdir()) == []


def test_a_hold_of_a_process_that_was_killed_is_free(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from wsipipe.runtime.lock import SlideLock\n"
        "SlideLock(Path(sys.argv[1]), 'a').take(); os.kill(os.getpid(), 9)"
    )
    file = tmp_path / ".a.tiling"
    assert subprocess.run([sys.executable, "-c", code, file], check=False).returncode == -9
    assert file.read_text().startswith("process ")
    hold = SlideLock(file, "a")
    hold.take()
    assert f"process {os.getpid()} " in file.read_text()
    hold.release()
    assert not file.exists()


def test_only_one_of_many_takes_a_hold(tmp_path: Path):
    file, got, start = tmp_path / ".a.tiling", [], threading.Barrier(8)

    def race() -> None:
        hold = SlideLock(file, "a")
        start.wait(10)
        try:
            hold.take()
        except StoreError:
            return
        got.append(hold)

    runners = [threading.Thread(target=race) for _ in range(8)]
    for r in runners:
        r.start()
    for r in runners:
        r.join()
    assert len(got) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_threads_may_share_one_heap(tmp_path: Path, shared: bool):
    code = f"""
import ctypes, threading
from wsipipe.runtime.memory import share_heap
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
if {shared}:
    share_heap()
both = threading.Barrier(2)
def take():
    libc.malloc(1000)
    both.wait()
threads = [threading.Thread(target=take) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
libc.malloc_info(0, ctypes.c_void_p(libc.fopen({str(tmp_path / "heaps")!r}.encode(), b"w")))
libc.fflush(None)
"""
    if not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("another C library than glibc")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert ((tmp_path / "heaps").read_text().count("<heap nr=") == 1) == shared


def test_what_a_lost_cluster_owes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executors, "_LOOK_S", 0.01)
    never: Future[int] = Future()
    pool = SimpleNamespace(_client=SimpleNamespace(status="closed"))
    with pytest.raises(CancelledError):
        executors.first_done(pool, [never])
    with ThreadPoolExecutor(1) as threads_alone:
        late = threads_alone.submit(time.sleep, 0.1)  # longer than a look: there is no cluster to be lost
        assert executors.first_done(threads_alone, [never, late]) == {late}
