"""Slides and stores that the tests of tiling share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tilings import CONFIG

from wsipipe.config.options import RunConfig
from wsipipe.slides import SlideFile
from wsipipe.slides.probe import Prober
from wsipipe.tiling.job import TileJob


@pytest.fixture(autouse=True)
def unprobed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process opens slides first, as that takes as long as tiling a small one; but in tests that use `probed`."""
    if "probed" not in request.fixturenames:
        monkeypatch.setattr(Prober, "check", lambda *_: None)


@pytest.fixture
def probed() -> None:
    """For a test that has slides opened in a process of their own first."""


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Stores and ledgers of one test."""
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), workers=2)


@pytest.fixture
def job(svs_path: Path, tmp_path: Path) -> TileJob:
    """The generated slide, to be tiled into a folder of one test."""
    return TileJob("blob", SlideFile(svs_path), CONFIG, tmp_path / "stores" / "blob.zarr")


@pytest.fixture(scope="session")
def wide_path(
    tmp_path_factory: pytest.TempPathFactory,
    svs_writer: Callable[..., None],
    tissue_drawer: Callable[..., tuple[Any, Any]],
) -> Path:
    """5408 x 304 px at 0.5 um/px, levels 1, 1/4, 1/16: a store of three levels, with two shards in the first."""
    path = tmp_path_factory.mktemp("wide") / "wide.svs"
    svs_writer(path, tissue_drawer((5408, 304))[0])
    return path
