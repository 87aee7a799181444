"""`describe` says of a store what is in it, in the words of its own metadata."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from wsipipe.config import RunConfig, TileConfig
from wsipipe.errors import StoreError
from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.info import describe
from wsipipe.store.slide_store import shard_windows
from wsipipe.tiling.tile import tile_slides


def add_map(store: SlideStore, name: str, classes: list[str]) -> None:
    meta = {"digest": "d", "classes": classes}
    windows = list(shard_windows(store.pixels().spec))
    masks = ((shard, np.ones((w.height_px, w.width_px), np.uint8)) for shard, w in windows)
    store.write_labels(name, {0: "none", 1: classes[0], 255: "ignore"}, meta, masks)
    width, height = (-(-n // 8) for n in store.grid.size_px)
    store.write_scores(name, 8, meta, [((0, 0), np.zeros((len(classes), height, width), np.uint8))])


def test_the_slide_its_resolution_and_its_patches_are_named(tiled: Path):
    text = describe(tiled)
    store = SlideStore(tiled)
    assert str(tiled) in text
    assert "blob.svs" in text
    assert "aperio, 1200 x 900 px at 0.5 x 0.5 um/px (from: " in text
    assert "working    1200 x 900 px at 0.5 x 0.5 um/px, 1 slide px per px, 2 levels" in text
    assert "codec      JPEG, quality 90, chunks of 256 px" in text
    assert f"patches    128 px every 128 px: {len(store.patches().cell)}, {len(store.patches().windows)} usable" in text
    assert re.search(r"^labels +tissue: ", text, re.MULTILINE)
    assert "scores" not in text


def test_the_size_on_disk_is_that_of_all_files(tiled: Path):
    used = sum(p.stat().st_size for p in tiled.rglob("*") if p.is_file())
    assert f"({used / 1e6:,.1f} MB, schema 1)" in describe(tiled)


def test_maps_are_named_with_their_classes_and_stride(store: SlideStore):
    add_map(store, "unet", ["tumour", "stroma"])
    add_map(store, "camel", ["tumour"])
    lines = describe(store.path).splitlines()
    assert "labels     unet: tumour, stroma" in lines
    assert "labels     camel: tumour" in lines
    assert "scores     unet: tumour, stroma, every 8 px" in lines


def test_another_lattice_has_a_line_of_its_own(store: SlideStore):
    table = store.patches()
    grid = store.grid.with_patches(64, 32)
    status = np.array([0, 0, 1], np.uint8)
    cells = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    store.write_patches(type(table)(grid, cells, np.ones(3, np.float32), status))
    text = describe(store.path)
    assert "patches    64 px every 32 px: 3, 2 usable" in text
    assert "patches    128 px every 128 px: " in text


def test_a_lossless_resampled_store_says_so(tmp_path: Path, svs_path: Path):
    run = RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), workers=1)
    config = TileConfig(mpp=1.0, patch_px=64, codec="zstd")
    _, paths = tile_slides({"blob": svs_path}, config, run)
    text = describe(paths[0])
    assert "working    600 x 450 px at 1 x 1 um/px, 2 slide px per px, 1 levels" in text
    assert "codec      zstd (lossless)" in text


def test_a_note_of_tiling_is_shown(tmp_path: Path):
    slide = {"path": "/x.svs", "vendor": "v", "size_px0": [64, 64], "mpp0": [0.5, 0.5], "mpp_source": "slide"}
    meta = {"slide_id": "x", "pixel_digest": "p", "slide": slide, "note": "no contrast"}
    store = SlideStore.create(tmp_path / "x.zarr", Grid((64, 64), (0.5, 0.5), (1, 1), 64, 64), 90, meta)
    assert "note       no contrast" in describe(store.path).splitlines()


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path):
    with pytest.raises(StoreError, match="not a store"):
        describe(tmp_path)
    with pytest.raises(StoreError, match="not a store"):
        describe(tmp_path / "none")
