"""Locks: exclusive across threads and processes, freed by a crash, and named after the process that has them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wsipipe.errors import StoreError
from wsipipe.runtime.lock import SlideLock, lock_file


def test_a_lock_is_exclusive_and_names_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "new" / ".a.tiling"
    mine, theirs = SlideLock(file, "a.zarr: tiling"), SlideLock(file, "a.zarr: tiling")
    mine.acquire()
    assert (mine.is_acquired, theirs.is_acquired) == (True, False)
    message = (
        rf"a\.zarr: tiling is locked by process {os.getpid()} on .+ since \d{{4}}-\d\d-\d\d .+; wait for it to finish"
    )
    for _ in range(2):  # who asks does not wipe out the name
        with pytest.raises(StoreError, match=message):
            theirs.acquire()
    theirs.release()
    assert file.exists()
    mine.release()
    assert (mine.is_acquired, list(file.parent.iterdir())) == (False, [])
    mine.release()
    theirs.acquire()
    theirs.release()
    assert list(file.parent.iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from wsipipe.runtime.lock import SlideLock\n"
        "SlideLock(Path(sys.argv[1]), 'a').acquire(); os.kill(os.getpid(), 9)"
    )
    file = tmp_path / ".a.tiling"
    assert subprocess.run([sys.executable, "-c", code, file], check=False).returncode == -9
    assert file.read_text().startswith("process ")
    lock = SlideLock(file, "a")
    lock.acquire()
    assert f"process {os.getpid()} " in file.read_text()
    lock.release()
    assert not file.exists()


def test_only_one_of_many_acquires_a_lock(tmp_path: Path) -> None:
    file, got, start = tmp_path / ".a.tiling", [], threading.Barrier(8)

    def race() -> None:
        lock = SlideLock(file, "a")
        start.wait(10)
        try:
            lock.acquire()
        except StoreError:
            return
        got.append(lock)

    runners = [threading.Thread(target=race) for _ in range(8)]
    for r in runners:
        r.start()
    for r in runners:
        r.join()
    assert len(got) == 1


def test_the_lock_file_of_a_store_lies_beside_it() -> None:
    assert lock_file(Path("stores/a.zarr")) == Path("stores/.a.zarr.lock")
