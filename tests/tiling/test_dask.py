"""Tiling on a dask cluster: the same bytes, and one clear sentence where there is no cluster."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiffs import tamper
from support.tilings import CONFIG, corrupt, files, ledger

from wsipipe.config.options import RunConfig
from wsipipe.errors import ConfigError, WsipipeError
from wsipipe.runtime import executor as executors
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.tiling.stage import run as tile_slides

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")


@pytest.fixture
def busy_port() -> Iterator[None]:
    """Another cluster has dask's usual port."""
    with socket.socket() as other:
        with contextlib.suppress(OSError):
            other.bind(("127.0.0.1", 8787))
            other.listen()
        yield


@pytest.mark.usefixtures("busy_port")
def test_processes_of_a_cluster_write_the_same_bytes(
    wide_path: Path, svs_path: Path, run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rubbish.svs").write_bytes(b"rubbish")
    tamper(Path(shutil.copy(svs_path, tmp_path / "damaged.svs")), 7, size=99)
    paths = {"wide": wide_path, "rubbish": tmp_path / "rubbish.svs", "damaged": tmp_path / "damaged.svs"}
    slides = {n: SlideFile(p) for n, p in paths.items()}
    config = replace(CONFIG, max_corrupt=0.2)
    tile_slides(slides, config, RunContext(run))
    monkeypatch.chdir(tmp_path)  # the paths of a job hold wherever its tasks run
    near = {n: SlideFile(Path(p.name)) if p.parent == tmp_path else SlideFile(p) for n, p in paths.items()}
    other = RunConfig(stores="far/stores", runs="far/runs", dask="2")
    report, stores = tile_slides(near, config, RunContext(other))
    assert [(r["item"], r["status"]) for r in report.rows] == [
        ("wide", "done"),
        ("rubbish", "failed"),
        ("damaged", "done"),
    ]
    assert stores == [Path("far/stores") / f"{n}.zarr" for n in ("wide", "damaged")]
    assert files(tmp_path / "far/stores") == files(Path(run.stores))
    assert [r["corrupt"] for r in ledger(other)] == [r["corrupt"] for r in ledger(run)]
    (mine,), (theirs,) = corrupt(other), corrupt(run)
    assert mine == theirs


def test_no_scheduler_is_told_in_time(svs_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executors.SCHEDULER_S <= 15
    monkeypatch.setattr(executors, "SCHEDULER_S", 0.5)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"--dask tcp://127\.0\.0\.1:1: no scheduler answers there"):
        tile_slides({"blob": SlideFile(svs_path)}, CONFIG, RunContext(replace(run, dask="tcp://127.0.0.1:1")))
    assert time.monotonic() - start < 10
    assert not Path(run.stores).exists()


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing(wide_path: Path, run: RunConfig, tmp_path: Path) -> None:
    slides = {n: SlideFile(wide_path) for n in "abcd"}
    tile_slides(slides, CONFIG, RunContext(run))
    killed: list[int] = []

    def kill_one(task: str, done: int, total: int, note: str = "") -> None:
        if task == "tile a" and not killed:
            workers = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
            killed.append(workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    other = replace(run, stores=str(tmp_path / "far"), dask="2")
    report, _ = tile_slides(slides, CONFIG, RunContext(other, kill_one))
    assert killed
    assert [r["status"] for r in report.rows] == ["done"] * 4
    assert files(Path(other.stores)) == files(Path(run.stores))


@pytest.fixture
def cluster() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler with one worker, as a user starts them: its address, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*run, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **quiet
    )
    worker = subprocess.Popen(
        [*run, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"], **quiet
    )
    with distributed.Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
    yield address, scheduler
    for process in (worker, scheduler):
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_lost_scheduler_is_told_and_the_run_goes_on_later(
    wide_path: Path, run: RunConfig, cluster: tuple[str, subprocess.Popen[bytes]]
) -> None:
    address, scheduler = cluster

    def kill_it(task: str, done: int, total: int, note: str = "") -> None:
        if task == "tile a":
            scheduler.kill()

    slides = {n: SlideFile(wide_path) for n in "abc"}
    with pytest.raises(WsipipeError, match=r"--dask tcp://127.*: lost the connection to the scheduler; finished"):
        tile_slides(slides, CONFIG, RunContext(replace(run, dask=address), kill_it))
    report, _ = tile_slides(slides, CONFIG, RunContext(run))
    assert [r["status"] for r in report.rows] == ["done"] * 3


@pytest.mark.slow
def test_a_worker_that_outlives_a_run_reads_the_changed_slide_in_the_next(
    svs_path: Path,
    svs_writer: Callable[..., None],
    tissue_rgb: tuple[Any, Any],
    run: RunConfig,
    cluster: tuple[str, subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    path = Path(shutil.copy(svs_path, tmp_path / "a.svs"))
    far = replace(run, stores=str(tmp_path / "far"), dask=cluster[0])
    tile_slides({"a": SlideFile(path)}, CONFIG, RunContext(far))
    before = files(Path(far.stores))
    shutil.rmtree(far.stores)
    svs_writer(path, tissue_rgb[0][::-1].copy())
    tile_slides({"a": SlideFile(path)}, CONFIG, RunContext(far))
    tile_slides({"a": SlideFile(path)}, CONFIG, RunContext(run))
    assert files(Path(far.stores)) == files(Path(run.stores)) != before
