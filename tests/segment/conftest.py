"""Stores of two-coloured slides, tiled without loss, and a stage that is given a network of the test's choice."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.two_colours import PATCH_PX, colour_mask, frame, paint, two_colours
from support.types import MakePath, WriteSvs
from torch import nn

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.nn.checkpoint import Checkpoint
from wsipipe.nn.encoders import MEAN, STD
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.store import SlideStore
from wsipipe.tiling.stage import run as tile_slides


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory, svs_writer: WriteSvs) -> Path:
    """Folder with the stores left.zarr, right.zarr and bare.zarr (glass only). Read only."""
    folder = tmp_path_factory.mktemp("coloured")
    slides = {}
    for seed, name in enumerate(("left", "right")):
        rgb = two_colours(437, 331, seed)
        slides[name] = folder / f"{name}.svs"
        svs_writer(slides[name], rgb, factors=(4,))
    slides["bare"] = folder / "bare.svs"
    svs_writer(slides["bare"], np.full((331, 437, 3), 243, np.uint8), factors=(4,))
    run = RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=1)
    config = TileConfig(patch_px=PATCH_PX, codec="zstd", tissue_mpp=2.0, min_area_um2=100.0)
    report, stores = tile_slides({i: SlideFile(path) for i, path in slides.items()}, config, RunContext(run))
    assert report.exit_code == 0, report.rows
    for path in stores:
        store = SlideStore(path)
        paint(store, colour_mask(store.read(frame(store))))
    return folder / "stores"


@pytest.fixture
def stores(tmp_path: Path, coloured: Path) -> dict[str, SlideStore]:
    """Copies of the coloured stores that a test may write to, by slide id."""
    shutil.copytree(coloured, tmp_path / "stores", dirs_exist_ok=True)
    return {p.stem: SlideStore(p) for p in sorted((tmp_path / "stores").glob("*.zarr"))}


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """One thread, everything inside the test's folder."""
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), device="cpu", workers=1)


@pytest.fixture
def checkpoint_of(monkeypatch: pytest.MonkeyPatch) -> MakePath:
    """`checkpoint_of(model, ...)`: the stage is given `model` whatever checkpoint it asks for."""

    def install(model: nn.Module, classes: tuple[str, ...] = ("pink",), mpp: float = 0.5, digest: str = "d") -> Path:
        note = Checkpoint("unet", "resnet18_quarter", classes, mpp, PATCH_PX, digest, MEAN, STD, {})
        monkeypatch.setattr("wsipipe.segment.predict.load_model", lambda path: (note, model.eval()))
        return Path("model.json")

    return install
