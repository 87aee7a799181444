"""A slide of 100,000 px is tiled within a fixed allowance of memory, at its own resolution and at another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.huge_slide import write_huge

ALLOWANCE = 512 * 2**20
"""Bytes of private memory (heap and anonymous mappings) that the process may ask for."""

RUN = """
import resource, sys
from pathlib import Path
from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.tiling import stage

slide, folder, mpp, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
context = RunContext(RunConfig(stores=folder + "/stores", runs=folder + "/runs", workers=2))
report, stores = stage.run({"huge": SlideFile(Path(slide))}, TileConfig(mpp=float(mpp)), context)
print(report.rows[0]["status"], report.rows[0]["patches"], report.rows[0]["copied"], report.rows[0]["reason"])
"""


def tile(slide: Path, folder: Path, mpp: float) -> list[str]:
    """Tile in a process of its own with `ALLOWANCE`; status, patches and share copied."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(slide), str(folder), str(mpp), str(ALLOWANCE)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mpp", "copied"), [(0.25, "100%"), (0.5, "0%")])
def test_a_slide_of_100k_px_needs_no_more_than_the_allowance(tmp_path: Path, mpp: float, copied: str) -> None:
    write_huge(tmp_path / "huge.svs", 100_000)
    status, patches, share = tile(tmp_path / "huge.svs", tmp_path, mpp)
    assert (status, share) == ("done", copied)
    side = 100_000 * 0.25 / mpp / 256
    assert abs(int(patches) / (3.14159 * (0.3 * side) ** 2) - 1) < 0.03


def test_the_memory_limit_is_felt_by_a_small_slide_too(tmp_path: Path) -> None:
    write_huge(tmp_path / "small.svs", 6_000)
    assert tile(tmp_path / "small.svs", tmp_path, 0.25)[0] == "done"
