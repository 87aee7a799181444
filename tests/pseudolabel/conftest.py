"""Stores tiled from small generated pictures, and a cohort in which the answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from textures import Cohort, plant, tiled_pictures, tissue

from wsipipe.config import PretrainConfig, PseudolabelConfig, RunConfig
from wsipipe.runtime import Report

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
    "overlap": 1,
    "calibrate": False,
}
"""CAMEL in a second: instances seen alone at full resolution, short schedules."""


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
        pretraining: PretrainConfig | None = None,
        **config: Any,
    ) -> tuple[Report, list[Path]]:
        settings = {"encoder": "resnet18_quarter", "pretrain": False, "self_train": False} | config
        options = PseudolabelConfig(labels=str(labels), **settings)
        values = QUICK | dict(method or {})
        return pseudolabel(list(stores.values()), options, values, run, overwrite=overwrite, pretraining=pretraining)

    return go
