"""Small tiled slides of tissue, told apart by their brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.pretrain_tissue import tissue

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.runtime.context import RunContext
from wsipipe.slides.base import SlideFile
from wsipipe.store import SlideStore
from wsipipe.tiling.stage import run as tile_slides


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of 8 (bright), 2 (dark) and 0 patches of 64 px. Read only: shared by all tests."""
    folder = tmp_path_factory.mktemp("slides")
    glass = np.full((64, 64, 3), 243, np.uint8)
    files = {}
    for name, rgb in (("big", tissue((256, 128))), ("small", tissue((128, 64), 1) // 2), ("glass", glass)):
        tifffile.imwrite(folder / f"{name}.tif", rgb, photometric="rgb", tile=(64, 64))
        files[name] = SlideFile(folder / f"{name}.tif")
    run = RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=1)
    options = TileConfig(patch_px=64, mpp_override=0.5, codec="zstd", qc=False, min_area_um2=100.0)
    report, stores = tile_slides(files, options, RunContext(run))
    assert report.exit_code == 0, report.rows
    return {p.stem: p for p in stores}


@pytest.fixture(scope="session")
def three(slides: dict[str, Path]) -> list[SlideStore]:
    """The stores, opened: big, small, glass."""
    return [SlideStore(slides[name]) for name in ("big", "small", "glass")]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Everything inside the test's folder, on the CPU."""
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), device="cpu", workers=1)
