"""What every contestant shares: the list of tiles, the stopwatch, and the answer as one line of JSON on stdout.

A contestant does its job once, in a process of its own. Imports, opening the slide and checking the output stay outside
of the stopwatch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

CHUNK_PX = 256
SHARD_PX = 4096
WORKERS = 2
BATCH = 32

Pixels = NDArray[np.uint8]
Cell = tuple[int, int]
"""(row, col) in a lattice of chunks or of shards."""


@dataclass(frozen=True)
class Plan:
    """Equal work for all: the chunks that the store of wsipipe holds at its working resolution.

    cells: int32 [N, 2] (row, col). scale: slide px per working px. size_px: (w, h) at the working resolution.
    """

    cells: NDArray[np.int32]
    scale: int
    size_px: tuple[int, int]
    quality: int

    @classmethod
    def load(cls, path: Path) -> Self:
        """The plan that `save` wrote."""
        with np.load(path) as f:
            width, height = f["size_px"].tolist()
            return cls(f["cells"], int(f["scale"]), (width, height), int(f["quality"]))

    def save(self, path: Path) -> None:
        """Write the plan for the other contestants."""
        np.savez(path, cells=self.cells, scale=self.scale, size_px=self.size_px, quality=self.quality)

    @property
    def probe(self) -> Cell:
        """The chunk whose pixels every contestant hands in, to be compared."""
        row, col = self.cells[len(self.cells) // 2].tolist()
        return row, col

    def shards(self) -> list[tuple[Cell, list[Cell]]]:
        """Every shard with its chunks, row-major."""
        n = SHARD_PX // CHUNK_PX
        shards: dict[Cell, list[Cell]] = {}
        for row, col in self.cells.tolist():
            shards.setdefault((row // n, col // n), []).append((row, col))
        return sorted(shards.items())


@dataclass(frozen=True)
class Windows:
    """Random reads, the same for all: `pool` int32 [N, 2] (x, y) of patches, `order` int32 [M] of patches to read."""

    pool: NDArray[np.int32]
    order: NDArray[np.int32]

    @classmethod
    def load(cls, path: Path) -> Self:
        """The windows that `save` wrote."""
        with np.load(path) as f:
            return cls(f["pool"], f["order"])

    def save(self, path: Path) -> None:
        """Write the windows for the other contestants."""
        np.savez(path, pool=self.pool, order=self.order)


@dataclass(frozen=True)
class Job:
    """The arguments of one run; which of them a contestant needs is its own affair."""

    slide: Path
    plan_file: Path
    out: Path
    store: Path
    windows: Path
    mpp: float

    @property
    def plan(self) -> Plan:
        """The tiles to do."""
        return Plan.load(self.plan_file)


class Stopwatch:
    """Wall and processor seconds of the block; `cpu` can be added to from worker processes."""

    def __enter__(self) -> Self:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began[0]
        self.cpu = time.process_time() - self._began[1]


def result(watch: Stopwatch, tiles: int, probe: Pixels | None = None, **more: Any) -> dict[str, Any]:
    """The answer of a contestant: `tiles` counted in its output, `probe` uint8 [h, w, 3] decoded from it."""
    return {"tiles": int(tiles), "seconds": watch.seconds, "cpu": watch.cpu, "probe": probe, **more}


def run(contestants: Mapping[str, Callable[[Job], dict[str, Any]]], description: str | None) -> None:
    """Command line of a file of contestants: run one, print its answer, keep its probe beside its output."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("contestant", choices=contestants)
    for name in ("slide", "plan", "store", "windows"):
        parser.add_argument(f"--{name}", type=Path, default=Path())
    parser.add_argument("--mpp", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the output; emptied first")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    job = Job(args.slide, args.plan, args.out, args.store, args.windows, args.mpp)
    answer = contestants[args.contestant](job)
    probe = answer.pop("probe")
    if probe is not None:
        np.save(args.out / "probe.npy", probe)
    print(json.dumps(answer))


def timed_reads(windows: Windows, read: Callable[[NDArray[np.int32]], NDArray[np.uint8]]) -> dict[str, Any]:
    """Time `read` batch by batch: patch numbers -> uint8 [n, y, x, 3]. One batch before the stopwatch wakes threads."""
    batches = np.split(windows.order, range(BATCH, len(windows.order), BATCH))
    probe = read(batches[0])[0]
    with Stopwatch() as watch:
        count = sum(len(read(batch)) for batch in batches)
    return result(watch, count, probe)
