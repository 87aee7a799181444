"""Stores tiled from small generated pictures, and a cohort in which the answer is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.labelled import BRIEF, ROWS, Csv, Stage, Stores, picture
from support.textures import Cohort, plant, tiled_pictures, tissue

from wsipipe.config.options import PretrainConfig, PseudolabelConfig, RunConfig
from wsipipe.pseudolabel.stage import PseudolabelOptions
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report

QUICK: dict[str, Any] = {
    "context": 1.0,
    "shrink": 1,
    "warm_steps": 0,
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
    """`quick(stores, labels, method={...}, sections={refinement: {...}}, ..)`: the stage with a tiny network."""
    from wsipipe.pseudolabel.stage import run as pseudolabel

    def go(
        stores: Mapping[str, Path],
        labels: Path,
        method: Mapping[str, Any] | None = None,
        run: RunConfig = run,
        overwrite: bool = False,
        pretraining: PretrainConfig | None = None,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        **config: Any,
    ) -> tuple[Report, list[Path]]:
        settings = {"encoder": "resnet18_quarter", "pretrain": False, "self_train": False} | config
        options = PseudolabelConfig(labels=str(labels), **settings)
        values = {"camel": QUICK | dict(method or {}), **(sections or {})}
        return pseudolabel(
            list(stores.values()),
            PseudolabelOptions(options, values, pretraining or PretrainConfig()),
            RunContext(run, overwrite=overwrite),
        )

    return go


@pytest.fixture(scope="session")
def tiled_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of five labelled slides and one without a row (`free`), patches of 64 px."""
    folder = tmp_path_factory.mktemp("cohort")
    kinds = {"blob": (0,), "line": (1,), "both": (0, 1), "none": (), "held": (0,), "free": (1,)}
    tiled_pictures(folder, {n: picture(i, k) for i, (n, k) in enumerate(kinds.items())}, patch_px=64)
    return folder / "stores"


@pytest.fixture
def stores(tmp_path: Path, tiled_cohort: Path) -> Stores:
    """Copies of the cohort's stores, by slide id."""
    shutil.copytree(tiled_cohort, tmp_path / "stores")
    return {p.stem: p for p in sorted((tmp_path / "stores").glob("*.zarr"))}


@pytest.fixture
def csv(tmp_path: Path) -> Csv:
    """`csv(*rows, header=..)` writes labels.csv."""

    def write(*rows: str, header: str = "slide_id,label,split") -> Path:
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([header, *(rows or ROWS)]) + "\n")
        return path

    return write


@pytest.fixture
def stage(quick: Stage) -> Stage:
    """`stage(stores, labels, ..)`: the stage with two steps of everything."""

    def go(stores: Stores, labels: Path, **more: object) -> tuple[Report, list[Path]]:
        return quick(stores, labels, BRIEF, **more)

    return go
