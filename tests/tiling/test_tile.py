"""Tiling: stores hold the slide's own pixels, runs continue, and a bad slide costs only itself."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsipipe.config import RunConfig, TileConfig
from wsipipe.errors import StoreError
from wsipipe.geometry import Window
from wsipipe.runtime import Report
from wsipipe.slides import find_slides, open_slide
from wsipipe.store import SlideStore
from wsipipe.store.shards import CHUNK_PX, SHARD_PX
from wsipipe.tiling import tile
from wsipipe.tiling.plan import plan_chunks
from wsipipe.tiling.tile import tile_slides

CONFIG = TileConfig(patch_px=128)
Tiler = Callable[..., tuple[Report, list[Path]]]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), workers=2)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def planned(store: SlideStore) -> set[tuple[int, int]]:
    return {c for cells in plan_chunks(store.patches(), CHUNK_PX, SHARD_PX).values() for c in cells}


def ledger(run: RunConfig) -> list[dict[str, str]]:
    with (Path(run.runs) / "tile" / "tile.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def test_lossless_pixels_are_the_slide_itself(svs_path: Path, run: RunConfig):
    _, (path,) = tile_slides({"blob": svs_path}, replace(CONFIG, codec="zstd"), run)
    store, slide = SlideStore(path), open_slide(svs_path, "blob")
    cells = planned(store)
    assert len(cells) > 6
    for row, col in cells:
        x, y = col * CHUNK_PX, row * CHUNK_PX
        w, h = min(CHUNK_PX, 1200 - x), min(CHUNK_PX, 900 - y)
        np.testing.assert_array_equal(store.read(Window(x, y, w, h)), slide.read((x, y), 0, (w, h)))
    slide.close()


def test_lossless_pixels_of_a_coarser_native_level_are_that_level(svs_path: Path, run: RunConfig):
    _, (path,) = tile_slides({"blob": svs_path}, TileConfig(mpp=2.0, patch_px=32, codec="zstd"), run)
    store, slide = SlideStore(path), open_slide(svs_path, "blob")
    assert store.grid.size_px == (300, 225)
    assert len(planned(store)) == 2
    np.testing.assert_array_equal(store.read(Window(0, 0, 300, 225)), slide.read((0, 0), 1, (300, 225)))
    slide.close()


def test_jpeg_pixels_are_those_pixels_encoded_once(tiled: Path, svs_path: Path):
    store, slide = SlideStore(tiled), open_slide(svs_path, "blob")
    array = store.pixels()
    for row, col in planned(store):
        x, y = col * CHUNK_PX, row * CHUNK_PX
        w, h = min(CHUNK_PX, 1200 - x), min(CHUNK_PX, 900 - y)
        block = np.pad(slide.read((x, y), 0, (w, h)), ((0, CHUNK_PX - h), (0, CHUNK_PX - w), (0, 0)), mode="edge")
        expected = array.spec.decode(array.spec.encode(np.moveaxis(block, -1, 0)), "here")
        np.testing.assert_array_equal(array.chunk((row, col)), expected)
    slide.close()


def test_exactly_the_planned_chunks_exist(tiled: Path):
    store = SlideStore(tiled)
    array = store.pixels()
    stored = {c for c in array.spec.chunks_of_shard((0, 0)) if array.chunk(c) is not None}
    assert stored == planned(store)


def test_every_kept_patch_has_its_tissue(tiled: Path, tissue_rgb):
    store = SlideStore(tiled)
    table = store.patches()
    assert (table.tissue >= 0.25).all()
    assert set(map(tuple, table.cell.tolist())) <= {(r, c) for r, c, _ in store.grid.windows()}
    for w, share in zip(table.windows, table.tissue, strict=True):
        truth = tissue_rgb[1][w.y_px : w.y_px + 128, w.x_px : w.x_px + 128].sum() / 128**2
        assert share == pytest.approx(truth, abs=0.2)
    tissue = store.labels("tissue").read(Window(0, 0, 1200, 900))
    assert set(np.unique(tissue)) == {0, 1}
    assert ((tissue == 1) & tissue_rgb[1]).sum() / ((tissue == 1) | tissue_rgb[1]).sum() > 0.9


def test_coarser_levels_cover_the_whole_slide_with_its_means(tiled: Path, tissue_rgb):
    store = SlideStore(tiled)
    assert store.grid.levels == 2
    overview = store.read(Window(0, 0, 300, 225), level=1)
    assert store.pixels(1).spec.shape == (3, 225, 300)
    means = tissue_rgb[0].reshape(225, 4, 300, 4, 3).mean((1, 3))
    assert np.abs(overview - means).mean() < 4
    assert overview[:20, :20].mean() == pytest.approx(243, abs=2)  # glass too, which level 0 does not hold


def test_a_resampled_store_keeps_the_asked_mpp(svs_path: Path, run: RunConfig, tissue_rgb):
    _, (path,) = tile_slides({"blob": svs_path}, TileConfig(mpp=1.0, patch_px=64, codec="zstd"), run)
    store = SlideStore(path)
    assert (store.grid.mpp, store.grid.size_px) == ((1.0, 1.0), (600, 450))
    found = store.read(Window(250, 150, 100, 100))
    means = tissue_rgb[0][300:500, 500:700].reshape(100, 2, 100, 2, 3).mean((1, 3))
    assert np.abs(found - means).mean() < 4


def test_a_plain_image_is_tiled_with_the_override(png_path: Path, run: RunConfig):
    report, stores = tile_slides({"image": png_path}, TileConfig(patch_px=64, mpp_override=0.5, codec="zstd"), run)
    assert [r["status"] for r in report.rows] == ["done"]
    store = SlideStore(stores[0])
    assert store.meta["slide"]["mpp_source"] == "override"
    slide = open_slide(png_path, "image", 0.5)
    np.testing.assert_array_equal(store.read(Window(0, 0, 400, 300)), slide.read((0, 0), 0, (400, 300)))
    report, _ = tile_slides({"image": png_path}, replace(CONFIG), replace(run, stores=run.stores + "2"))
    assert "give it with --mpp-override" in report.rows[0]["reason"]


def test_a_second_run_skips_and_touches_nothing(svs_path: Path, run: RunConfig):
    tile_slides({"blob": svs_path}, CONFIG, run)
    before = snapshot(Path(run.stores))
    report, stores = tile_slides({"blob": svs_path}, CONFIG, run)
    assert [r["status"] for r in report.rows] == ["skipped"]
    assert [p.name for p in stores] == ["blob.zarr"]
    assert snapshot(Path(run.stores)) == before


def test_two_runs_write_the_same_bytes(svs_path: Path, run: RunConfig, tiled: Path):
    _, (path,) = tile_slides({"blob": svs_path}, CONFIG, replace(run, workers=1))
    ours, theirs = ({p.relative_to(s): p.read_bytes() for p in s.rglob("*") if p.is_file()} for s in (path, tiled))
    assert ours == theirs


def test_other_settings_fail_naming_overwrite_which_then_replaces(svs_path: Path, run: RunConfig):
    tile_slides({"blob": svs_path}, CONFIG, run)
    before = snapshot(Path(run.stores))
    other = replace(CONFIG, quality=70)
    report, stores = tile_slides({"blob": svs_path}, other, run)
    assert (report.exit_code, stores) == (1, [])
    assert "made from another slide or with other settings; replace it with --overwrite" in report.rows[0]["reason"]
    assert snapshot(Path(run.stores)) == before
    report, stores = tile_slides({"blob": svs_path}, other, run, overwrite=True)
    assert [r["status"] for r in report.rows] == ["done"]
    assert SlideStore(stores[0]).pixels().spec.quality == 70
    assert [p.name for p in Path(run.stores).iterdir()] == ["blob.zarr"]


def test_overwrite_keeps_a_store_of_the_same_inputs_and_its_masks(svs_path: Path, run: RunConfig):
    _, (path,) = tile_slides({"blob": svs_path}, CONFIG, run)
    SlideStore(path).write_labels("mine", {1: "tumour"}, {"digest": "x", "classes": ["tumour"]}, [])
    report, _ = tile_slides({"blob": svs_path}, CONFIG, run, overwrite=True)
    assert [r["status"] for r in report.rows] == ["skipped"]
    assert SlideStore(path).names("labels") == ["mine", "tissue"]


def test_masks_that_a_replacement_would_lose_are_named(svs_path: Path, run: RunConfig, caplog):
    _, (path,) = tile_slides({"blob": svs_path}, CONFIG, run)
    SlideStore(path).write_labels("mine", {1: "tumour"}, {"digest": "x", "classes": ["tumour"]}, [])
    other = replace(CONFIG, quality=70)
    report, _ = tile_slides({"blob": svs_path}, other, run)
    assert "(its labels mine would go too)" in report.rows[0]["reason"]
    assert SlideStore(path).names("labels") == ["mine", "tissue"]
    tile_slides({"blob": svs_path}, other, run, overwrite=True)
    assert "replaced; its labels mine are gone" in caplog.text


def test_a_damaged_store_can_be_overwritten(svs_path: Path, run: RunConfig):
    _, (path,) = tile_slides({"blob": svs_path}, CONFIG, run)
    (path / "zarr.json").write_text("{")
    report, _ = tile_slides({"blob": svs_path}, CONFIG, run)
    assert "not readable as Zarr v3 metadata" in report.rows[0]["reason"]
    report, _ = tile_slides({"blob": svs_path}, CONFIG, run, overwrite=True)
    assert [r["status"] for r in report.rows] == ["done"]


def test_another_slide_of_the_same_name_fails_naming_overwrite(
    svs_path: Path, run: RunConfig, tmp_path: Path, svs_writer, tissue_rgb
):
    tile_slides({"blob": svs_path}, CONFIG, run)
    svs_writer(tmp_path / "blob.svs", tissue_rgb[0][::-1])
    report, _ = tile_slides({"blob": tmp_path / "blob.svs"}, CONFIG, run)
    assert "--overwrite" in report.rows[0]["reason"]


def test_a_bad_slide_is_one_failed_row_and_costs_only_itself(
    svs_path: Path, run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    import tifffile

    damaged = bytearray(svs_path.read_bytes())
    with tifffile.TiffFile(svs_path) as tiff:
        start = tiff.pages[0].dataoffsets[7]
    damaged[start : start + 400] = bytes(400)
    (tmp_path / "damaged.svs").write_bytes(damaged)
    (tmp_path / "rubbish.svs").write_bytes(b"rubbish")
    slides = {"rubbish": tmp_path / "rubbish.svs", "damaged": tmp_path / "damaged.svs", "blob": svs_path}
    report, stores = tile_slides(slides, CONFIG, run)
    assert [r["status"] for r in report.rows] == ["failed", "failed", "done"]
    assert "neither OpenSlide nor the image reader knows this format" in report.rows[0]["reason"]
    assert "cannot be decoded" in report.rows[1]["reason"]
    assert [p.name for p in stores] == ["blob.zarr"]
    assert [p.name for p in Path(run.stores).iterdir()] == ["blob.zarr"]
    assert "rubbish: failed: " in caplog.text
    assert report.exit_code == 1
    assert tile_slides(slides, CONFIG, replace(run, max_failed="2"))[0].exit_code == 0
    assert tile_slides(slides, CONFIG, replace(run, max_failed="70%"))[0].exit_code == 0


def test_the_ledger_tells_what_became_of_each_slide(svs_path: Path, run: RunConfig, tmp_path: Path):
    (tmp_path / "bad.svs").write_bytes(b"bad")
    report, stores = tile_slides({"blob": svs_path, "bad": tmp_path / "bad.svs"}, CONFIG, run)
    rows = ledger(run)
    assert [(r["item"], r["status"]) for r in rows] == [("blob", "done"), ("bad", "failed")]
    assert rows[0]["store"] == str(stores[0])
    assert int(rows[0]["patches"]) == len(SlideStore(stores[0]).patches().cell)
    assert float(rows[0]["seconds"]) >= 0
    assert rows[1]["reason"] == report.rows[1]["reason"] != ""


def test_a_blank_slide_is_empty_and_says_so(
    tmp_path: Path, run: RunConfig, svs_writer, caplog: pytest.LogCaptureFixture
):
    svs_writer(tmp_path / "blank.svs", np.full((400, 500, 3), 243, np.uint8))
    with caplog.at_level(logging.WARNING):
        report, stores = tile_slides({"blank": tmp_path / "blank.svs"}, CONFIG, run)
    assert [r["status"] for r in report.rows] == ["empty"]
    assert report.exit_code == 0
    assert "blank: no tissue (nothing darker than glass)" in caplog.text
    store = SlideStore(stores[0])
    assert (len(store.patches().cell), store.meta["note"]) == (0, "nothing darker than glass")
    assert (store.read(Window(0, 0, 500, 400)) == 255).all()
    assert tile_slides({"blank": tmp_path / "blank.svs"}, CONFIG, run)[0].rows[0]["status"] == "skipped"


def test_too_little_tissue_for_any_patch_names_the_option(
    svs_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        report, _ = tile_slides({"blob": svs_path}, TileConfig(patch_px=2048, min_tissue=1.0), run)
    assert [r["status"] for r in report.rows] == ["empty"]
    assert "see --min-tissue" in caplog.text


@pytest.mark.parametrize("error", [StoreError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_over_when_writing_stops(
    svs_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    real = tile.read_window
    calls = []

    def stops(*args: object) -> object:
        calls.append(args)
        if len(calls) > 4:
            raise error
        return real(*args)

    monkeypatch.setattr(tile, "read_window", stops)
    if isinstance(error, StoreError):
        report, stores = tile_slides({"blob": svs_path}, CONFIG, run)
        assert (report.rows[0]["reason"], stores) == ("disk full", [])
    else:
        with pytest.raises(KeyboardInterrupt):
            tile_slides({"blob": svs_path}, CONFIG, run)
    assert list(Path(run.stores).iterdir()) == []
    monkeypatch.undo()
    assert tile_slides({"blob": svs_path}, CONFIG, run)[0].rows[0]["status"] == "done"


def test_what_a_killed_run_left_is_cleared(svs_path: Path, run: RunConfig):
    aside = Path(run.stores) / ".blob.zarr.partial"
    aside.mkdir(parents=True)
    (aside / "junk").touch()
    tile_slides({"blob": svs_path}, CONFIG, run)
    assert [p.name for p in Path(run.stores).iterdir()] == ["blob.zarr"]
    assert not (Path(run.stores) / "blob.zarr" / "junk").exists()


def test_nothing_is_written_beside_the_slides(slide_folder: Path, run: RunConfig):
    before = snapshot(slide_folder)
    tile_slides(find_slides([slide_folder]), CONFIG, run)
    assert snapshot(slide_folder) == before
    assert sorted(p.name for p in slide_folder.iterdir()) == ["blob.svs"]


def test_progress_counts_slides_and_chunks(svs_path: Path, run: RunConfig):
    told: list[tuple[str, int, int]] = []
    tile_slides({"blob": svs_path}, CONFIG, run, lambda task, done, total, note="": told.append((task, done, total)))
    assert told[0] == ("tile", 0, 1)
    assert told[-1] == ("tile", 1, 1)
    chunks = [t for t in told if t[0] == "tile blob"]
    assert chunks
    assert chunks[-1][1] == chunks[-1][2] > 0


def test_overlapping_patches_cost_a_table_not_pixels(svs_path: Path, run: RunConfig, tiled: Path):
    _, (path,) = tile_slides({"blob": svs_path}, replace(CONFIG, stride_px=64), run)
    dense, plain = SlideStore(path), SlideStore(tiled)
    assert len(dense.patches().cell) > 3 * len(plain.patches().cell)
    assert (dense.path / "0/c/0/0/0").stat().st_size < 1.3 * (plain.path / "0/c/0/0/0").stat().st_size


def test_real_slides_are_tiled_with_one_bad_file_among_them(real_wsi: Path, run: RunConfig):
    slides = find_slides(
        [real_wsi / n for n in ("CMU-1-Small-Region.svs", "test3-DAPI-2-(387).ndpi", "unreadable.svs")]
    )
    report, stores = tile_slides(slides, TileConfig(mpp=2.0, patch_px=64), replace(run, max_failed="1"))
    status = {r["item"]: r["status"] for r in report.rows}
    assert status == {"CMU-1-Small-Region": "done", "test3-DAPI-2-_387_": "empty", "unreadable": "failed"}
    assert report.exit_code == 0
    assert len(stores) == 2
