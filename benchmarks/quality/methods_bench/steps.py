"""Steps: one command each, run in a process of its own, with a record of it, so that a benchmark can go on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import wait_for

POLL_S = 0.1
ROOT = Path(__file__).resolve().parents[3]
WSIPIPE = (sys.executable, "-c", "from wsipipe.cli import main; main()")


class Failed(SystemExit):
    """A command ended badly; the message says which, and where its output is."""


@dataclass(frozen=True)
class Step:
    """One command.

    name: unique, such as glas/fold1/cam-s0/fit. track: weak (may not see truth), judge, supervised or make. needs:
    names of the steps whose output it takes. inputs: files whose content counts. clears: folders to empty before it.
    """

    name: str
    track: str
    argv: tuple[str, ...]
    cwd: Path
    needs: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    clears: tuple[Path, ...] = ()


class Records:
    """What was run, a JSON file a step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a step."""
        return self.folder / f"{name.replace('/', '__')}.json"

    def read(self, name: str) -> dict[str, Any]:
        """The record of a step; empty if it has not been run to its end."""
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else {}

    def keys(self, step: Step) -> str:
        """Of all that the step depends on: its command, its files, and the same of the steps that it needs."""
        parts = [*step.argv, *(self.read(n).get("key", "") for n in step.needs)]
        parts += [hashlib.sha256(p.read_bytes()).hexdigest() for p in step.inputs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def run_all(
    steps: Sequence[Step],
    records: Records,
    wanted: Callable[[str], bool],
    seconds: float,
    before: Callable[[Step], None],
    say: Callable[[str], None],
) -> list[Step]:
    """Run what is wanted and not done yet; returns the steps that are left.

    No step starts later than `seconds` after the call. `before` may refuse a step by an exception.
    """
    until = time.monotonic() + seconds
    left: list[Step] = []
    for step in steps:
        key = records.keys(step)
        old = records.read(step.name)
        if old.get("key") == key:
            continue
        lacks = any(n.name in step.needs for n in left) or not all(records.read(n) for n in step.needs)
        if not wanted(step.name) or time.monotonic() > until or lacks:
            left.append(step)
            continue
        before(step)
        record = run(step, records.folder, renew=bool(old))
        record |= {"name": step.name, "track": step.track, "key": key, "command": " ".join(step.argv)}
        records.folder.mkdir(parents=True, exist_ok=True)
        records.path(step.name).write_text(json.dumps(record, indent=1))
        say(f"{step.name}: {record['seconds']:.0f} s, {record['peak_mib']:.0f} MiB")
    return left


def run(step: Step, folder: Path, renew: bool) -> Mapping[str, Any]:
    """Run one command; wall time in s and peak memory of its process tree in MiB. `renew`: replace what there is."""
    for path in step.clears:
        shutil.rmtree(path, ignore_errors=True)
    step.cwd.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    argv = [*step.argv, *(["--overwrite"] if renew and step.argv[: len(WSIPIPE)] == WSIPIPE else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log_path = folder / f"{step.name.replace('/', '__')}.log"
    began = time.monotonic()
    with log_path.open("w") as log:
        process = subprocess.Popen(argv, cwd=step.cwd, stdout=log, stderr=log, env=environment)
        peak_mib = wait_for(process, POLL_S)
    if process.returncode:
        said = log_path.read_text().strip().splitlines() or ["nothing"]
        raise Failed(f"{step.name}: exit code {process.returncode}, it said: {said[-1]}\n  all of it: {log_path}")
    return {"seconds": time.monotonic() - began, "peak_mib": peak_mib}
