"""The whole benchmark on four small pictures: every step once, nothing twice, and no step beside truth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

TINY = """
title: four pictures
slides: "{data}/images/*.png"
labels: {csv: "{data}/labels.csv"}
classes: [bad]
truth: "{data}/truth/{slide_id}.png"
truth_map: 0=0,1=bad
tile: {mpp_override: 0.5, qc: false, min_area_um2: 100.0, tissue_mpp: 2.0, patch_px: 64}
pseudolabel: {encoder: resnet18_quarter, pretrain: false}
segment: {encoder: resnet18_quarter, steps: 2, batch: 2}
methods: {cam: {params: {cells: 8, steps: 2, batch: 4, windows: 4}}}
budgets: {quick: {}}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """tiny.yaml and its data: pictures of 128 px, two to train on; of one of each two the left half is bad."""
    data = tmp_path / "data"
    for folder in ("images", "truth"):
        (data / folder).mkdir(parents=True)
    rows = ["slide_id,label,split"]
    for i, split in enumerate(["train", "train", "test", "test"]):
        rgb = np.clip(np.random.default_rng(i).normal((205, 150, 185), 20, (128, 128, 3)), 0, 255).astype(np.uint8)
        mask = np.zeros((128, 128), np.uint8)
        mask[:, :64] = i % 2
        rgb[mask == 1] //= 2
        (data / "images" / f"s{i}.png").write_bytes(imagecodecs.png_encode(rgb))
        (data / "truth" / f"s{i}.png").write_bytes(imagecodecs.png_encode(mask))
        rows.append(f"s{i},{'bad' if i % 2 else ''},{split}")
    (data / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def bench(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [
        sys.executable,
        "-m",
        "benchmarks.quality.methods",
        "--data",
        "data",
        "--sets",
        "tiny.yaml",
        "--device",
        "cpu",
        *more,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_row_is_there_and_a_second_run_does_nothing(tiny: Path) -> None:
    first = bench(tiny, "--out", "page.md")
    assert first.returncode == 0, first.stderr
    page = (tiny / "page.md").read_text()
    assert page == first.stdout
    assert "not run" not in page
    assert "missing" not in page
    for row in ("empty mask | test", "all tissue | train", "cam: raw scores at 0.5 | train", "cam: segmenter | test"):
        assert f"| {row} | " in page
    assert "| supervised by pixels (same network, start and budget) | test | " in page
    assert len(first.stderr.splitlines()) == 16
    again = bench(tiny)
    assert again.stderr == ""
    assert again.stdout == page


@pytest.mark.slow
def test_truth_in_the_folder_of_the_weak_methods_stops_the_benchmark(tiny: Path) -> None:
    weak = tiny / "methods-work" / "tiny-quick" / "fold1" / "weak"
    weak.mkdir(parents=True)
    shutil.copy(tiny / "data" / "truth" / "s1.png", weak / "harmless.png")
    done = bench(tiny)
    assert done.returncode == 1
    assert "harmless.png: pixel truth lies in the folder of the weak methods" in done.stderr
    assert not (weak / "stores").exists()
