"""The end of a slide: coarser levels where the slide has none, attributes, and the store in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.tiffs import expected
from support.tilings import CONFIG, slow_mean, streams, tile_one

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.geometry import Window
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.store import PatchTable, SlideStore
from wsipipe.store.verify import VerifyOptions
from wsipipe.store.verify import run as verify_stores
from wsipipe.tiling import finish
from wsipipe.tiling.stage import run as tile_slides
from wsipipe.tissue.detect import TissueMask


def whole_level(store: SlideStore, level: int) -> np.ndarray:
    height, width = store.grid.level_shape(level)
    return store.read(Window(0, 0, width, height), level)


@pytest.mark.parametrize("size", [(5408, 304), (5301, 299)])
def test_a_single_level_gets_coarser_ones_by_area_means(
    tmp_path: Path, svs_writer: Callable[..., None], tissue_drawer: Callable[..., tuple[Any, Any]], size: Any
) -> None:
    path = tmp_path / "single.svs"
    svs_writer(path, tissue_drawer(size)[0], factors=())
    store = tile_one(path, tmp_path, replace(CONFIG, codec="zstd"))
    shapes = [store.grid.level_shape(k) for k in range(store.grid.levels)]
    assert len(shapes) == 3
    level1 = slow_mean(expected(path), (4, 4), shapes[1][::-1])
    np.testing.assert_array_equal(whole_level(store, 1), level1)
    np.testing.assert_array_equal(whole_level(store, 2), slow_mean(level1, (4, 4), shapes[2][::-1]))
    jpeg = tile_one(path, tmp_path / "jpeg")
    assert jpeg.meta["copied_levels"] == [0]
    assert np.abs(whole_level(jpeg, 2).astype(int) - whole_level(store, 2)).mean() < 4


def test_a_derived_level_is_white_where_the_finer_one_holds_nothing(tmp_path: Path, png_path: Path) -> None:
    store = tile_one(SlideFile(png_path, (0.1, 0.1)), tmp_path, TileConfig(mpp=0.05, patch_px=512, codec="zstd"))
    assert store.grid.levels == 1
    assert store.meta["stored"].keys() == {"0"}


def test_what_is_stored_is_counted_shard_by_shard(tmp_path: Path, wide_path: Path) -> None:
    store = tile_one(wide_path, tmp_path)
    for level in range(store.grid.levels):
        array = store.pixels(level)
        counted = {
            f"{row}.{col}": len(shard.present())
            for row in range(array.spec.shards[0])
            for col in range(array.spec.shards[1])
            if (shard := array.shard((row, col)))
        }
        assert store.meta["stored"][str(level)] == counted
    assert (store.meta["copied"], store.meta["bad"], store.meta["bad_px"]) == (1.0, [], [])
    assert sorted(p.name for p in store.path.iterdir()) == ["0", "1", "2", "labels", "patches", "scores", "zarr.json"]


def test_a_new_store_is_whole_by_verify_and_by_stock_zarr(tmp_path: Path, wide_path: Path) -> None:
    store = tile_one(wide_path, tmp_path)
    report, whole = verify_stores([store.path], VerifyOptions(), RunContext(RunConfig(runs=str(tmp_path / "runs"))))
    assert (report.exit_code, whole) == (0, [store.path])
    group = zarr.open_group(str(store.path), mode="r")
    assert group["labels/tissue/0"].shape == store.grid.level_shape(0)
    assert set(np.unique(np.asarray(group["labels/tissue/2"]))) == {0, 1}


def test_the_share_that_was_copied_counts_chunks_of_level_0(tmp_path: Path, wide_path: Path) -> None:
    store = tile_one(wide_path, tmp_path, replace(CONFIG, mpp=0.3, patch_px=64))
    assert (store.meta["copied"], store.meta["copied_levels"]) == (0.0, [])
    assert len(streams(store.pixels())) > 40


def test_versions_and_slide_are_on_record(tiled: Path, svs_path: Path) -> None:
    meta = SlideStore(tiled).meta
    assert meta["versions"]["tifffile"]
    assert meta["slide"]["path"] == str(svs_path)
    assert meta["tile"]["patch_px"] == 128
    assert meta["tissue_mpp"] == pytest.approx(8.0)
    assert meta["note"] == ""


def test_the_picture_to_check_by_is_asked_for_with_what_it_shows(
    tmp_path: Path, svs_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(finish, "write_qc_image", lambda *what: asked.append(what))
    tile_slides({"blob": SlideFile(svs_path)}, CONFIG, RunContext(run))
    assert asked == []
    tile_slides(
        {"blob": SlideFile(svs_path)}, replace(CONFIG, qc_image=True, codec="zstd"), RunContext(run, overwrite=True)
    )
    ((path, rgb, factor, tissue, table, bad),) = asked
    assert path == Path(run.runs) / "tile" / "blob.png"
    assert rgb.shape == (-(-900 // factor), -(-1200 // factor), 3)
    assert isinstance(tissue, TissueMask)
    assert isinstance(table, PatchTable)
    assert list(bad) == []
