"""Stores tiled from small generated pictures, and a cohort in which the answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from textures import plant, tissue

from wsipipe.config import PseudolabelConfig, RunConfig, TileConfig
from wsipipe.runtime import Report
from wsipipe.tiling.tile import tile_slides

QUICK: dict[str, Any] = {
    "context": 1.0,
    "shrink": 1,
    "selector_steps": 60,
    "selector_lr": 1e-2,
    "retrain_steps": 40,
    "self_train_steps": 10,
    "batch": 32,
    "lr": 2e-3,
    "views": 1,
}
"""CAMEL in a second: instances seen alone at full resolution, short schedules."""


def tiled_pictures(folder: Path, pictures: Mapping[str, NDArray[np.uint8]], **options: Any) -> dict[str, Path]:
    """Write each picture as PNG into `folder` and tile it at 0.5 um/px; slide id -> store."""
    settings: dict[str, Any] = {"mpp_override": 0.5, "patch_px": 128, "codec": "zstd", "min_area_um2": 100.0}
    settings |= {"tissue_mpp": 2.0} | options
    slides = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, rgb in pictures.items():
        slides[name] = folder / f"{name}.png"
        slides[name].write_bytes(imagecodecs.png_encode(np.ascontiguousarray(rgb)))
    run = RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=1)
    report, stores = tile_slides(slides, TileConfig(**settings), run)
    assert report.exit_code == 0, report.rows
    return {p.stem: p for p in stores}


@dataclass
class Cohort:
    """Stores with their labels, and where the texture was planted: (slide, patch row, patch col) -> cell (row, col)."""

    folder: Path
    stores: dict[str, Path]
    planted: dict[tuple[str, int, int], tuple[int, int]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=lambda: ["slide_id,label,x,y,width,height,split"])

    def labels(self, name: str = "labels.csv", rows: list[str] | None = None) -> Path:
        """Write `rows` (default: the cohort's own) as a labels file."""
        path = self.folder / name
        path.write_text("\n".join(rows or self.rows) + "\n")
        return path


@pytest.fixture
def tile_pictures(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """`tile_pictures({"name": rgb}, patch_px=128, ...)` -> {"name": store}; options of TileConfig may follow."""

    def make(pictures: Mapping[str, NDArray[np.uint8]], **options: Any) -> dict[str, Path]:
        return tiled_pictures(tmp_path, pictures, **options)

    return make


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Everything inside the test's folder, on the CPU, with one thread."""
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), device="cpu", workers=1)


@pytest.fixture(scope="session")
def plant_cohort(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Cohort]:
    """`plant_cohort(name, slides, patches, patch_px)`: patch labels, half of the patches with one planted square."""

    def make(name: str, slides: int, patches: int, patch_px: int) -> Cohort:
        folder = tmp_path_factory.mktemp(name)
        rng = np.random.default_rng(5)
        m = patch_px // 4
        pictures = {}
        cohort = Cohort(folder, {})
        for s in range(slides):
            rgb = tissue((patches * patch_px, patches * patch_px), seed=s)
            for row, col in np.ndindex(patches, patches):
                x, y = col * patch_px, row * patch_px
                positive = (row + col + s) % 2
                if positive:
                    cell = int(rng.integers(4)), int(rng.integers(4))
                    plant(rgb, (x + cell[1] * m, y + cell[0] * m), m)
                    cohort.planted[(f"s{s}", row, col)] = cell
                label = "blobs" if positive else ""
                cohort.rows.append(f"s{s},{label},{x},{y},{patch_px},{patch_px},train")
            pictures[f"s{s}"] = rgb
        cohort.stores = tiled_pictures(folder, pictures, patch_px=patch_px)
        return cohort

    return make


@pytest.fixture(scope="session")
def small_cohort(plant_cohort: Callable[..., Cohort]) -> Cohort:
    """Two slides of 3 x 3 patches of 192 px. Read only: shared by all tests."""
    return plant_cohort("small", 2, 3, 192)


@pytest.fixture
def quick(run: RunConfig) -> Callable[..., tuple[Report, list[Path]]]:
    """`quick(stores, labels, method={...}, run=run, overwrite=False, **config)`: the stage with a tiny network."""
    from wsipipe.pseudolabel.label import pseudolabel

    def go(
        stores: Mapping[str, Path],
        labels: Path,
        method: Mapping[str, Any] | None = None,
        run: RunConfig = run,
        overwrite: bool = False,
        **config: Any,
    ) -> tuple[Report, list[Path]]:
        settings = {"encoder": "resnet18_quarter", "pretrain": False, "self_train": False} | config
        options = PseudolabelConfig(labels=str(labels), **settings)
        return pseudolabel(list(stores.values()), options, QUICK | dict(method or {}), run, overwrite=overwrite)

    return go
