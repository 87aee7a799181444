"""The memory of a process tree, as the benchmarks see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.processes import _resident_kib, wait_for

SMALL = """
import subprocess, sys
sys.path.insert(0, {folder!r})
from benchmarks.processes import wait_for
process = subprocess.Popen([sys.executable, "-c", {code!r}])
print(wait_for(process, {every_s}), process.returncode)
"""
"""A process as small as a benchmark's, which waits for another; this one may hold a GiB."""


def waited(code: str, every_s: float = 0.02) -> tuple[float, int]:
    """(MiB, exit code) of a process that runs `code`, as a small process sees it."""
    folder = str(Path(processes.__file__).parents[1])
    script = SMALL.format(folder=folder, code=code, every_s=every_s)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    mib, returncode = done.stdout.split()
    return float(mib), int(returncode)


def test_what_children_hold_counts_and_the_exit_code_is_there() -> None:
    child = f"import time; held = bytearray(b'x') * {80 * 2**20}; time.sleep(0.3)"
    mib, returncode = waited(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); sys.exit(3)")
    assert 80 < mib < 160
    assert returncode == 3


def test_a_short_peak_between_two_looks_is_seen() -> None:
    mib, _ = waited("held = b'x' * (90 * 2**20); del held", every_s=0.7)
    assert 90 < mib < 160


def test_interrupted_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def ctrl_c(pid: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.processes._resident_kib", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        wait_for(process)
    assert process.wait(timeout=10) == -9


def test_memory_of_this_process_is_seen_and_of_none_is_nothing() -> None:
    assert _resident_kib(os.getpid()) > 10_000
    assert _resident_kib(2**22 + 1) == 0
