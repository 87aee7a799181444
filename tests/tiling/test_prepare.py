"""Planning: frames that begin elsewhere, lattices added to a store, and stores that are in the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from support.tilings import CONFIG, files, stamps, tile_one, with_mask

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.geometry import Window
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.store import NOT_STORED, USABLE, SlideStore
from wsipipe.store.verify import verify
from wsipipe.tiling import cache as caches
from wsipipe.tiling.cache import SlideCache
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.prepare import prepare
from wsipipe.tiling.stage import run as tile_slides

DENSE = replace(CONFIG, stride_px=64)


def go(path: Path | SlideFile, run: RunConfig, config: TileConfig = CONFIG, overwrite: bool = False) -> dict[str, str]:
    """Tile one slide; its row in the ledger."""
    file = path if isinstance(path, SlideFile) else SlideFile(path)
    return tile_slides({"blob": file}, config, RunContext(run, overwrite=overwrite))[0].rows[0]


def store_of(run: RunConfig) -> SlideStore:
    return SlideStore(Path(run.stores) / "blob.zarr")


@pytest.fixture
def from_array(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., SlideStore]:
    """Tiles a fake slide."""

    def tiled(slide: Any, config: TileConfig = CONFIG) -> SlideStore:
        monkeypatch.setattr(caches, "open_slide", lambda *_: slide)
        return tile_one(Path("array.svs"), tmp_path, config)

    return tiled


@pytest.mark.parametrize(
    ("bounds", "mpp", "origin"),
    [
        ((203, 119, 700, 600), 0.5, (192, 112)),
        ((203, 119, 700, 600), 1.0, (192, 112)),
        ((203, 119, 701, 603), 2.0, (192, 112)),
        ((64, 32, 1136, 868), 0.5, (64, 32)),
        ((15, 15, 1000, 800), 0.5, (0, 0)),
    ],
)
def test_a_store_begins_where_the_pixels_of_the_slide_do(
    from_array: Any,
    array_slide: Any,
    tissue_rgb: tuple[Any, Any],
    bounds: tuple[int, int, int, int],
    mpp: float,
    origin: tuple[int, int],
) -> None:
    rgb = tissue_rgb[0]
    slide = array_slide(rgb, (1, 4, 16))
    slide.info = replace(slide.info, bounds_px0=bounds)
    store = from_array(slide, TileConfig(mpp=mpp, patch_px=64 if mpp < 2 else 32, codec="zstd"))
    grid, f = store.grid, round(mpp / 0.5)
    right, bottom = bounds[0] + bounds[2], bounds[1] + bounds[3]
    assert (grid.origin_px0, grid.size_px0) == (origin, (right - origin[0], bottom - origin[1]))
    assert grid.size_px == ((right - origin[0]) // f, (bottom - origin[1]) // f)
    windows = store.patches().windows
    assert len(windows) > 8
    level = slide.levels[{1: 0, 2: 0, 4: 1}[f]]
    if f == 2:
        level = np.floor(level.reshape(450, 2, 600, 2, 3).mean((1, 3)) + 0.5).astype(np.uint8)
    frame = level[origin[1] // f :, origin[0] // f :][: grid.size_px[1], : grid.size_px[0]]
    for w in windows:
        part = frame[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
        np.testing.assert_array_equal(store.read(w)[: part.shape[0], : part.shape[1]], part)
        assert (store.read(w)[part.shape[0] :] == 255).all()
    x0, y0 = grid.to_px0((windows[0].x_px, windows[0].y_px))
    np.testing.assert_array_equal(
        rgb[int(y0), int(x0)], rgb[windows[0].y_px * f + origin[1], windows[0].x_px * f + origin[0]]
    )


def test_levels_of_a_store_with_bounds_are_those_of_the_slide_from_there(
    from_array: Any, array_slide: Any, tissue_rgb: tuple[Any, Any]
) -> None:
    slide = array_slide(np.tile(tissue_rgb[0][200:500], (1, 5, 1)), (1, 4, 16))
    slide.info = replace(slide.info, bounds_px0=(35, 17, 5500, 270))
    store = from_array(slide, replace(CONFIG, codec="zstd"))
    assert (store.grid.origin_px0, store.grid.levels) == ((32, 16), 3)
    for level, f in ((1, 4), (2, 16)):
        own = slide.levels[level][16 // f :, 32 // f :]
        height, width = store.grid.level_shape(level)
        h, w = min(height, own.shape[0]) - 1, min(width, own.shape[1]) - 1
        np.testing.assert_array_equal(store.read(Window(0, 0, w, h), level), own[:h, :w])


def test_a_slide_with_bounds_is_not_copied(tmp_path: Path, svs_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = caches.open_slide

    def with_bounds(*what: Any) -> Any:
        slide = real(*what)
        slide.info = replace(slide.info, bounds_px0=(16, 16, 1000, 800))
        return slide

    monkeypatch.setattr(caches, "open_slide", with_bounds)
    store = tile_one(svs_path, tmp_path)
    assert (store.grid.origin_px0, store.meta["copied_levels"], store.meta["copied"]) == ((16, 16), [], 0.0)


def test_another_stride_adds_a_table_and_touches_no_pixel(svs_path: Path, run: RunConfig) -> None:
    go(svs_path, run)
    store = store_of(run)
    before, first, plain = stamps(store.path), store.digest, store.patches()
    assert go(svs_path, run, DENSE)["status"] == "added"
    dense = store_of(run)
    assert dense.pixel_digest == store.pixel_digest
    assert (dense.grid.stride_px, dense.patches().grid.stride_px) == (64, 64)
    assert dense.digest != first
    after = stamps(dense.path)
    changed = {k for k in after if after[k] != before.get(k)}
    assert {k for k in changed if not k.startswith("patches/128_64/")} == {"zarr.json"}
    assert before.keys() <= after.keys()
    assert len(dense.patches().windows) > 3 * len(plain.windows)
    assert verify(dense.path).damage == ()
    assert [p.name for p in Path(run.stores).iterdir() if not p.name.endswith(".lock")] == ["blob.zarr"]


def test_the_table_that_is_added_is_that_of_a_store_made_so(svs_path: Path, run: RunConfig, tmp_path: Path) -> None:
    go(svs_path, run)
    go(svs_path, run, DENSE)
    added, made = store_of(run).patches(), tile_one(svs_path, tmp_path / "direct", DENSE).patches()
    for column in ("cell", "tissue", "status"):
        np.testing.assert_array_equal(getattr(added, column), getattr(made, column))


def test_switching_back_restores_the_lattice_and_its_digest(svs_path: Path, run: RunConfig) -> None:
    go(svs_path, run)
    first, content = store_of(run).digest, files(store_of(run).path)
    go(svs_path, run, DENSE)
    dense = store_of(run).digest
    assert go(svs_path, run)["status"] == "skipped"
    assert (store_of(run).digest, store_of(run).grid.stride_px) == (first, 128)
    assert files(store_of(run).path) == content | {
        k: v for k, v in files(store_of(run).path).items() if k.startswith("patches/128_64/")
    }
    assert go(svs_path, run, DENSE)["status"] == "skipped"
    assert store_of(run).digest == dense


def test_stain_is_evened_out_and_back_without_a_pixel_written(svs_path: Path, run: RunConfig, tmp_path: Path) -> None:
    go(svs_path, run)
    before, plain, even = stamps(store_of(run).path), store_of(run).digest, replace(CONFIG, normalise_stain=True)
    assert go(svs_path, run, even)["status"] == "added"
    changed = {k for k, v in stamps(store_of(run).path).items() if before.get(k) != v}
    assert changed == {"zarr.json"}
    assert store_of(run).is_normalised
    assert go(svs_path, run, even)["status"] == "skipped"
    direct = tile_one(svs_path, tmp_path / "direct", even)
    assert (direct.digest, direct.meta["stain_gamma"]) == (store_of(run).digest, store_of(run).meta["stain_gamma"])
    assert go(svs_path, run)["status"] == "added"
    assert (store_of(run).is_normalised, store_of(run).digest) == (False, plain)


def pieces(folder: Path) -> Path:
    """A mask with a large piece of tissue and, far from it, one of 40 px."""
    mask = np.zeros((900, 1200), np.uint8)
    mask[64:320, 64:320], mask[800:840, 1100:1140] = 255, 255
    path = folder / "mask.png"
    path.write_bytes(imagecodecs.png_encode(mask))
    return path


def test_patches_over_tissue_that_is_not_stored_are_left_out_with_a_warning(
    svs_path: Path, run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = with_mask(svs_path, pieces(tmp_path))
    config = TileConfig(patch_px=64, min_tissue=0.9)
    go(file, run, config)
    assert not store_of(run).pixels().present()[3, 4]
    with caplog.at_level(logging.WARNING):
        assert go(file, run, TileConfig(patch_px=32, min_tissue=0.3))["status"] == "added"
    table = store_of(run).patches()
    far = np.asarray((table.cell * 32 > (700, 1000)).all(1))
    assert far.sum() > 0
    assert table.status.tolist() == [NOT_STORED if f else USABLE for f in far]
    assert len(table.windows) == (~far).sum() > 60
    assert (
        f"blob: excluded {far.sum()} of {len(far)} patches: the store has no pixels for some of their tissue"
        in caplog.text
    )
    assert "delete the store and tile again" in caplog.text


def test_another_share_of_tissue_for_a_lattice_has_to_be_meant(svs_path: Path, run: RunConfig) -> None:
    go(svs_path, run)
    before, digest, tight = files(Path(run.stores)), store_of(run).digest, replace(CONFIG, min_tissue=0.95)
    row = go(svs_path, run, tight)
    assert row["status"] == "failed"
    assert (
        "its patches of 128 px every 128 px were selected with another --min-tissue; replace them with --overwrite"
        in (row["reason"])
    )
    assert files(Path(run.stores)) == before
    pixels, many = stamps(store_of(run).path), len(store_of(run).patches().cell)
    tissue = store_of(run).labels("tissue").read(store_of(run).grid.frame)
    assert go(svs_path, run, tight, overwrite=True)["status"] == "added"
    after = stamps(store_of(run).path)
    assert {k for k in after if after[k] != pixels.get(k)} <= {"zarr.json"} | {
        k for k in after if k.startswith("patches/128_128/")
    }
    assert len(store_of(run).patches().cell) < many
    assert store_of(run).digest != digest
    np.testing.assert_array_equal(store_of(run).labels("tissue").read(store_of(run).grid.frame), tissue)


def test_labels_stay_when_a_lattice_is_added(svs_path: Path, run: RunConfig) -> None:
    go(svs_path, run)
    store_of(run).write_labels("mine", {1: "tumour"}, {"digest": "x", "classes": ["tumour"]}, [])
    go(svs_path, run, DENSE)
    go(svs_path, run, replace(CONFIG, min_tissue=0.9), overwrite=True)
    assert store_of(run).names("labels") == ["mine", "tissue"]


def test_other_settings_fail_naming_overwrite_which_then_replaces(svs_path: Path, run: RunConfig) -> None:
    go(svs_path, run)
    before = stamps(Path(run.stores))
    other = replace(CONFIG, quality=70, codec="zstd")
    row = go(svs_path, run, other)
    assert "blob.zarr was made from other inputs; replace it with --overwrite" in row["reason"]
    assert stamps(Path(run.stores)) == before
    assert go(svs_path, run, other, overwrite=True)["status"] == "done"
    assert store_of(run).pixels().spec.quality == 0
    assert [p.name for p in Path(run.stores).iterdir()] == ["blob.zarr"]


def test_overwrite_keeps_a_store_of_the_same_inputs_and_its_masks(svs_path: Path, run: RunConfig) -> None:
    go(svs_path, run)
    store_of(run).write_labels("mine", {1: "tumour"}, {"digest": "x", "classes": ["tumour"]}, [])
    assert go(svs_path, run, overwrite=True)["status"] == "skipped"
    assert store_of(run).names("labels") == ["mine", "tissue"]


def test_masks_that_a_replacement_would_lose_are_named(
    svs_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    go(svs_path, run)
    store_of(run).write_labels("mine", {1: "tumour"}, {"digest": "x", "classes": ["tumour"]}, [])
    other = replace(CONFIG, codec="zstd")
    assert "(its masks mine would be deleted too)" in go(svs_path, run, other)["reason"]
    assert store_of(run).names("labels") == ["mine", "tissue"]
    go(svs_path, run, other, overwrite=True)
    assert "replaced; its masks mine are deleted" in caplog.text


def test_a_damaged_store_can_be_overwritten(svs_path: Path, run: RunConfig) -> None:
    go(svs_path, run)
    (Path(run.stores) / "blob.zarr" / "zarr.json").write_text("{")
    assert "not readable as Zarr v3 metadata" in go(svs_path, run)["reason"]
    assert go(svs_path, run, overwrite=True)["status"] == "done"


def test_another_slide_of_the_same_name_fails_naming_overwrite(
    svs_path: Path, run: RunConfig, tmp_path: Path, svs_writer: Callable[..., None], tissue_rgb: tuple[Any, Any]
) -> None:
    go(svs_path, run)
    svs_writer(tmp_path / "blob.svs", tissue_rgb[0][::-1])
    assert "--overwrite" in go(tmp_path / "blob.svs", run)["reason"]


def test_the_users_mask_decides_what_is_tissue(svs_path: Path, run: RunConfig, tmp_path: Path) -> None:
    go(with_mask(svs_path, pieces(tmp_path)), run, TileConfig(patch_px=64, min_tissue=0.5))
    assert [tuple(c) for c in store_of(run).patches().cell.tolist()] == [
        (r, c) for r in range(1, 5) for c in range(1, 5)
    ]


def test_preparing_plans_every_shard_once(job: TileJob) -> None:
    with SlideCache() as cache:
        first, again = prepare(job, cache), prepare(job, cache)
    assert (first.status, first.written) == ("planned", 0)
    assert [(t.level, t.shard, t.chunks) for t in first.shards] == [(0, (0, 0), 17), (1, (0, 0), 2)]
    assert again == first
