"""A slide of two colours, one for each class, tiled without loss, and networks whose answer is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsipipe.config import RunConfig, TileConfig
from wsipipe.nn.checkpoint import Checkpoint
from wsipipe.nn.encoders import MEAN, STD
from wsipipe.store import SlideStore
from wsipipe.store.slide_store import shard_windows
from wsipipe.tiling.tile import tile_slides

PATCH_PX = 64


class RedNet(nn.Module):
    """Says that each pixel is class 1 with the probability of its red value, 0..1."""

    def forward(self, x: Tensor) -> Tensor:
        red = (x[:, :1].double() * STD[0] + MEAN[0]).clamp(1e-7, 1 - 1e-7)
        return torch.cat([torch.zeros_like(red), red.logit()], 1)


class SureNet(nn.Module):
    """Says class 1 everywhere, as surely as a float can."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x[:, :1], -80.0), torch.zeros_like(x[:, :1])], 1)


def two_colours(width: int, height: int, seed: int) -> np.ndarray:
    """Glass around tissue, whose left half is pink and right half purple: uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    rgb = np.full((height, width, 3), 243.0)
    inner = np.s_[height // 8 : -height // 8]
    rgb[inner, width // 8 : width // 2] = (226, 160, 192)
    rgb[inner, width // 2 : -width // 8] = (120, 70, 150)
    return np.clip(rgb + rng.normal(0, 4, rgb.shape), 0, 255).astype(np.uint8)


def paint(store: SlideStore, mask: np.ndarray, name: str = "truth", **meta: object) -> None:
    """Write a whole mask uint8 [h, w] as `labels/<name>` of classes pink and purple."""
    values = {0: "none", 1: "pink", 2: "purple", 255: "ignore"}
    attributes = {"digest": f"{name} {store.slide_id}", "classes": ["pink", "purple"], **meta}
    shards = (
        (shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px])
        for shard, w in shard_windows(store.pixels().spec)
    )
    store.write_labels(name, values, attributes, shards)


def colour_mask(rgb: np.ndarray) -> np.ndarray:
    """What `two_colours` drew: 0 glass, 1 pink, 2 purple."""
    green = rgb[..., 1].astype(int)
    return np.select([green > 200, green > 115], [0, 1], 2).astype(np.uint8)


def whole(array) -> np.ndarray:
    """All pixels of a sharded array."""
    from wsipipe.geometry import Window

    height, width = array.spec.shape[-2:]
    return np.asarray(array.read(Window(0, 0, width, height)))


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory, svs_writer: Callable[..., None]) -> Path:
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
    report, stores = tile_slides(slides, config, run)
    assert report.exit_code == 0, report.rows
    for path in stores:
        store = SlideStore(path)
        paint(store, colour_mask(store.read(frame(store))))
    return folder / "stores"


def frame(store: SlideStore):
    """The window of the whole slide."""
    from wsipipe.geometry import Window

    return Window(0, 0, *store.grid.size_px)


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
def checkpoint_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`checkpoint_of(model, ...)`: the stage is given `model` whatever checkpoint it asks for."""

    def install(model: nn.Module, classes: tuple[str, ...] = ("pink",), mpp: float = 0.5, digest: str = "d") -> Path:
        note = Checkpoint("unet", "resnet18_quarter", classes, mpp, PATCH_PX, digest, MEAN, STD, {})
        monkeypatch.setattr("wsipipe.segment.predict.load", lambda path: (note, model.eval()))
        return Path("model.json")

    return install
