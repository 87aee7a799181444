"""`describe` says of a store what is in it, in the words of its own metadata."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.errors import StoreError
from wsipipe.geometry import Grid
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.store import PatchTable, SlideStore
from wsipipe.store.info import describe
from wsipipe.store.label_images import shard_windows
from wsipipe.store.tissue_levels import TissueLevels
from wsipipe.tiling.stage import run as tile_slides


def add_map(store: SlideStore, name: str, classes: list[str]) -> None:
    meta = {"digest": "d", "classes": classes}
    windows = list(shard_windows(store.pixels().spec))
    masks = ((shard, np.ones((w.height_px, w.width_px), np.uint8)) for shard, w in windows)
    store.write_labels(name, {0: "none", 1: classes[0], 255: "ignore"}, meta, masks)
    width, height = (-(-n // 8) for n in store.grid.size_px)
    store.write_scores(name, 8, meta, [((0, 0), np.zeros((len(classes), height, width), np.uint8))])


def test_the_slide_its_resolution_and_its_patches_are_named(tiled: Path) -> None:
    text = describe(tiled)
    store = SlideStore(tiled)
    assert str(tiled) in text
    assert "blob.svs" in text
    assert "aperio, 1200 x 900 px at 0.5 x 0.5 um/px (from: " in text
    assert "working    1200 x 900 px at 0.5 x 0.5 um/px, 1 slide px per px, 2 levels" in text
    assert "codec      JPEG, quality 90, chunks of 256 px" in text
    assert "copied     levels 0, 1 byte for byte; " in text
    assert re.search(r"^tissue     detected at [0-9.]+ um/px", text, re.MULTILINE)
    assert f"patches    128 px every 128 px: {len(store.patches().windows)} usable (default)" in text.splitlines()
    assert "unreadable" not in text
    assert re.search(r"^labels +tissue: ", text, re.MULTILINE)
    assert "scores" not in text


def test_the_size_on_disk_is_that_of_all_files(tiled: Path) -> None:
    used = sum(p.stat().st_size for p in tiled.rglob("*") if p.is_file())
    assert f"({used / 1e6:,.1f} MB, schema 2)" in describe(tiled)


def test_maps_are_named_with_their_classes_and_stride(store: SlideStore) -> None:
    add_map(store, "unet", ["tumour", "stroma"])
    add_map(store, "camel", ["tumour"])
    lines = describe(store.path).splitlines()
    assert "labels     unet: tumour, stroma" in lines
    assert "labels     camel: tumour" in lines
    assert "scores     unet: tumour, stroma, every 8 px" in lines


def test_another_lattice_has_a_line_of_its_own(store: SlideStore) -> None:
    table = store.patches()
    grid = store.grid.with_patches(64, 32)
    status = np.array([0, 0, 1], np.uint8)
    cells = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    store.write_patches(type(table)(grid, cells, np.ones(3, np.float32), status))
    (store.path / "patches" / ".64_32.old").mkdir()
    lines = describe(store.path).splitlines()
    assert "patches    64 px every 32 px: 2 usable, 1 corrupt (default)" in lines
    assert f"patches    128 px every 128 px: {len(table.windows)} usable" in lines


def test_a_lossless_resampled_store_says_so(tmp_path: Path, svs_path: Path) -> None:
    run = RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), workers=1)
    config = TileConfig(mpp=1.0, patch_px=64, codec="zstd")
    _, paths = tile_slides({"blob": SlideFile(svs_path)}, config, RunContext(run))
    text = describe(paths[0])
    assert "working    600 x 450 px at 1 x 1 um/px, 2 slide px per px, 1 level" in text
    assert "codec      zstd (lossless), chunks of 256 px" in text
    assert "copied     none: all pixels were decoded and encoded again" in text


def noted(path: Path, chunk_px: int = 240, **more: object) -> SlideStore:
    """An empty store with these attributes."""
    slide = {"path": "/x.svs", "vendor": "v", "size_px0": [64, 64], "mpp0": [0.5, 0.5], "mpp_source": "slide"}
    meta = {"slide_id": "x", "pixel_digest": "p", "slide": slide, **more}
    return SlideStore.create(path, Grid((64, 64), (0.5, 0.5), (1, 1), 64, 64), 90, meta, [chunk_px])


def test_a_note_of_tiling_is_shown(tmp_path: Path) -> None:
    store = noted(tmp_path / "x.zarr", note="no contrast")
    assert "note       no contrast" in describe(store.path).splitlines()


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.0, "100%"), (0.9999, "99.9%"), (0.5, "50%"), (0.123, "12.3%"), (0.00001, "0.1%"), (0.0, "0%")],
)
def test_the_share_that_was_copied_is_all_or_nothing_only_where_it_is(tmp_path: Path, share: float, said: str) -> None:
    store = noted(tmp_path / "x.zarr", copied=share, copied_levels=[0])
    lines = describe(store.path).splitlines()
    assert "codec      JPEG, quality 90, chunks of 240 px" in lines
    assert f"copied     level 0 byte for byte; {said} of the chunks of level 0" in lines


def test_what_of_the_slide_was_lost_or_left_out_is_said(tmp_path: Path) -> None:
    bad = [[0, 1, 2, "broken"]]
    store = noted(tmp_path / "x.zarr", bad=bad, tissue_mpp=8.0)
    assert "tissue     detected at 8 um/px" in describe(store.path).splitlines()
    store.write_tissue(TissueLevels(np.ones((4, 4), np.uint8), 16), {"shares": {"pen": 0.012, "blur": 0.0}})
    lines = describe(store.path).splitlines()
    assert "unreadable 1 tile of the slide" in lines
    assert "tissue     detected at 8 um/px; excluded: pen 1.2%" in lines
    store.update_meta(bad=bad * 2)
    assert "unreadable 2 tiles of the slide" in describe(store.path).splitlines()


def test_a_lattice_without_patches_says_none(tmp_path: Path) -> None:
    store = noted(tmp_path / "x.zarr")
    none = PatchTable(store.grid, np.zeros((0, 2), np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint8))
    store.write_patches(none)
    assert "patches    64 px every 64 px: none (default)" in describe(store.path).splitlines()
    store.write_patches(PatchTable(store.grid, np.zeros((1, 2), np.int32), np.ones(1, np.float32), np.full(1, 2, "u1")))
    assert "patches    64 px every 64 px: 1 not stored (default)" in describe(store.path).splitlines()


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store"):
        describe(tmp_path)
    with pytest.raises(StoreError, match="not a store"):
        describe(tmp_path / "none")
