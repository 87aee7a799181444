"""Tiles that cannot be read: named one by one, white, invalid in the tissue, out of every patch, and nothing else."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiffs import expected, overwrite, place, tamper
from support.tilings import CONFIG, corrupt, cut, ledger, streams, tile_one

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.geometry import Window
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.runtime.context import RunContext
from wsipipe.segment.data import find_samples
from wsipipe.slides import SlideFile
from wsipipe.slides.readers import openslide as reader
from wsipipe.store import CORRUPT, SlideStore
from wsipipe.tiling.stage import run as tile_slides

ROW, COL, INDEX = 1, 2, 7
"""A tile of level 0 in the middle of the tissue: 256 px square at (512, 256)."""

LENIENT = replace(CONFIG, max_corrupt=0.2)
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda p: tamper(p, INDEX, size=place(p, INDEX)[1] // 2), "truncated"),
    "zero bytes": (lambda p: tamper(p, INDEX, size=0), "missing"),
    "missing": (lambda p: tamper(p, INDEX, offset=0, size=0), "missing"),
    "beyond the file": (lambda p: tamper(p, INDEX, offset=10**8), "beyond the end of the file"),
    "zeroed": (lambda p: overwrite(p, place(p, INDEX)[0], bytes(400)), "does not start with a JPEG marker"),
}


def damaged(svs_path: Path, folder: Path, how: Callable[[Path], object]) -> Path:
    """A copy of the slide with one kind of damage."""
    folder.mkdir(exist_ok=True)
    path = Path(shutil.copy(svs_path, folder / "blob.svs"))
    how(path)
    return path


def tiled_at(path: Path, run: RunConfig, config: TileConfig = LENIENT) -> SlideStore:
    report, stores = tile_slides({"blob": SlideFile(path)}, config, RunContext(run))
    assert report.exit_code == 0, report.rows
    return SlideStore(stores[0])


def assert_quarantined(store: SlideStore, whole: SlideStore, bad: Window) -> None:
    """`store` is `whole` but for the window `bad`, which is white, invalid and in no usable patch."""
    lossless = not store.pixels().spec.quality or store.meta["copied"]
    assert store.read(bad).min() >= (255 if lossless else 235)  # JPEG rings where white meets tissue
    width, height = store.grid.size_px
    tissue, before = (s.labels("tissue").read(Window(0, 0, width, height)) for s in (store, whole))
    inside = np.zeros_like(tissue, bool)
    inside[bad.y_px : bad.y_px + bad.height_px, bad.x_px : bad.x_px + bad.width_px] = True
    assert (tissue[inside] == 255).all()
    assert np.mean(tissue[~inside] != before[~inside]) < 0.002  # where a coarser level lacks it too, its rim differs
    assert (before != 255).all()
    table, plain = store.patches(), whole.patches()
    touching = [meets(table.grid.window(*cell), bad) for cell in table.cell.tolist()]
    assert table.status.tolist() == [CORRUPT if t else 0 for t in touching]
    usable = [w for w in plain.windows if not meets(w, bad)]
    assert 0 < len(usable) < len(plain.windows)
    assert table.windows == usable
    for mine, theirs in zip(store.read_batch(usable), whole.read_batch(usable), strict=True):
        assert np.abs(mine.astype(int) - theirs).max() <= (0 if lossless else 16)


def meets(a: Window, b: Window) -> bool:
    """Whether two windows share a pixel."""
    beside = a.x_px + a.width_px <= b.x_px or b.x_px + b.width_px <= a.x_px
    return not (beside or a.y_px + a.height_px <= b.y_px or b.y_px + b.height_px <= a.y_px)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_tile_is_one_row_and_costs_its_patches_alone(
    kind: str, svs_path: Path, tmp_path: Path, run: RunConfig, tiled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how, reason = DAMAGE[kind]
    store, whole = tiled_at(damaged(svs_path, tmp_path / "slides", how), run), SlideStore(tiled)
    (row,) = corrupt(run)
    place_px = ("blob", "0", str(ROW), str(COL), "512", "256", "256", "256")
    assert tuple(row.values())[:-1] == place_px
    assert reason in row["reason"]
    assert "tile (1, 2)" in row["reason"]
    assert_quarantined(store, whole, Window(512, 256, 256, 256))
    mine, theirs = streams(store.pixels()), streams(whole.pixels())
    assert theirs.keys() - mine.keys() == {(ROW, COL)}
    assert all(theirs[cell] == stream for cell, stream in mine.items())
    above, below = (s.read(Window(0, 0, 300, 225), 1).astype(int) for s in (store, whole))
    assert (above == below).all()  # though OpenSlide holds coarser tiles over a missing one for missing too
    coarse = store.labels("tissue", 1).read(Window(0, 0, 300, 225))
    assert (coarse[64:128, 128:192] == 255).all()
    assert np.count_nonzero(coarse == 255) == 64 * 64
    assert CORRUPT in store.patches().status
    (told,) = ledger(run)
    assert (told["status"], told["corrupt"], told["patches"]) == ("done", "1", str(len(store.patches().windows)))
    assert "1 tile cannot be read" in told["reason"]
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (TileConfig(mpp=1.0, patch_px=64), Window(256, 128, 128, 128)),
        (TileConfig(mpp=1.0, patch_px=64, codec="zstd", fast_resample=True), Window(256, 128, 128, 128)),
        (TileConfig(mpp=0.5, patch_px=128, codec="zstd"), Window(512, 256, 256, 256)),
        (TileConfig(mpp=0.7, patch_px=64, codec="zstd"), Window(365, 182, 184, 184)),
    ],
)
def test_resampled_pixels_lose_what_the_tile_covers(
    config: TileConfig, bad: Window, svs_path: Path, tmp_path: Path, run: RunConfig
) -> None:
    config = replace(config, max_corrupt=0.2)
    whole = tile_one(svs_path, tmp_path / "whole", config)
    store = tiled_at(damaged(svs_path, tmp_path / "slides", DAMAGE["truncated"][0]), run, config)
    (row,) = corrupt(run)
    assert [int(row[k]) for k in ("x_px", "y_px", "width_px", "height_px")] == [
        bad.x_px, bad.y_px, bad.width_px, bad.height_px,
    ]  # fmt: skip
    if config.mpp != 0.7:
        assert_quarantined(store, whole, bad)
        return
    assert (store.read(bad.grown(-1)) == 255).all()  # pixels at the rim are partly of the neighbours
    assert len(store.patches().windows) < len(whole.patches().windows)
    for w in store.patches().windows:
        np.testing.assert_array_equal(store.read(w), whole.read(w))


@pytest.mark.parametrize("config", [LENIENT, TileConfig(mpp=1.0, patch_px=64, max_corrupt=0.2)])
def test_slides_that_only_openslide_reads_are_judged_tile_by_tile_too(
    config: TileConfig, svs_path: Path, tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "TILED_TIFF", ())
    whole = tile_one(svs_path, tmp_path / "whole", config)
    assert whole.meta["copied"] == 0.0
    store = tiled_at(damaged(svs_path, tmp_path / "slides", DAMAGE["truncated"][0]), run, config)
    (row,) = corrupt(run)
    assert [row[k] for k in ("slide", "level", "row", "col")] == ["blob", "0", str(ROW), str(COL)]
    assert "cannot be decoded" in row["reason"]
    f = 1 if config.mpp == 0.5 else 2
    assert_quarantined(store, whole, Window(512 // f, 256 // f, 256 // f, 256 // f))


def test_damage_to_a_coarser_level_alone_costs_nothing(
    svs_path: Path, tmp_path: Path, run: RunConfig, tiled: Path
) -> None:
    def coarse(path: Path) -> None:
        tamper(path, 0, page=2, offset=0, size=0)

    store, whole = tiled_at(damaged(svs_path, tmp_path / "slides", coarse), run), SlideStore(tiled)
    assert (corrupt(run), ledger(run)[0]["corrupt"]) == ([], "0")
    assert streams(store.pixels()) == streams(whole.pixels())
    for name in ("cell", "status"):
        np.testing.assert_array_equal(getattr(store.patches(), name), getattr(whole.patches(), name))
    found, own = (s.read(Window(0, 0, 300, 225), 1).astype(int) for s in (store, whole))
    assert np.abs(found - own).mean() < 3  # made from level 0
    assert (store.labels("tissue").read(Window(0, 0, 1200, 900)) != 255).all()


def test_damage_to_the_working_level_is_mended_from_the_finer_one(
    svs_path: Path, tmp_path: Path, run: RunConfig
) -> None:
    config = TileConfig(mpp=2.0, patch_px=32, codec="zstd")
    store = tiled_at(damaged(svs_path, tmp_path / "slides", lambda p: tamper(p, 0, page=2, size=0)), run, config)
    assert corrupt(run) == []
    means = expected(svs_path).reshape(225, 4, 300, 4, 3).mean((1, 3))
    found = store.read(Window(0, 0, 256, 225)).astype(float)
    assert np.abs(found - means[:, :256]).max() <= 0.51


def test_a_bad_tile_where_there_is_only_glass_costs_no_patch(svs_path: Path, tmp_path: Path, run: RunConfig) -> None:
    path = damaged(svs_path, tmp_path / "slides", lambda p: tamper(p, 4, size=0))
    config = replace(LENIENT, patch_px=64)
    whole, store = tile_one(svs_path, tmp_path / "whole", config), tiled_at(path, run, config)
    assert len(store.patches().windows) == len(whole.patches().windows)


def test_too_many_bad_tiles_fail_the_slide_naming_the_option_and_leave_nothing(
    svs_path: Path, tmp_path: Path, run: RunConfig
) -> None:
    path = damaged(svs_path, tmp_path / "slides", lambda p: [tamper(p, i, size=0) for i in (6, 7, 8)])
    report, stores = tile_slides({"blob": SlideFile(path)}, CONFIG, RunContext(run))
    assert (report.exit_code, stores) == (1, [])
    reason = report.rows[0]["reason"]
    assert "3 tiles cannot be read, 19% of the planned pixels (limit 5%, see --max-corrupt)" in reason
    assert "tile (1, 1) is missing" in reason
    assert list(Path(run.stores).iterdir()) == []
    assert corrupt(run) == []
    assert tiled_at(path, run, LENIENT).meta["bad"][0][:3] == [0, 1, 1]
    assert len(corrupt(run)) == 3


def test_a_single_level_that_is_mostly_gone_fails_before_it_is_tiled(
    tmp_path: Path, run: RunConfig, svs_writer: Callable[..., None], tissue_rgb: tuple[Any, Any]
) -> None:
    svs_writer(tmp_path / "blob.svs", tissue_rgb[0], factors=())
    for i in range(6, 14):
        tamper(tmp_path / "blob.svs", i, size=0)
    report, _ = tile_slides({"blob": SlideFile(tmp_path / "blob.svs")}, LENIENT, RunContext(run))
    assert "8 tiles cannot be read" in report.rows[0]["reason"]
    assert "see --max-corrupt" in report.rows[0]["reason"]
    assert list(Path(run.stores).iterdir()) == []


def test_rows_stay_when_the_slide_is_skipped_and_go_when_it_is_mended(
    svs_path: Path, tmp_path: Path, run: RunConfig
) -> None:
    path = damaged(svs_path, tmp_path / "slides", DAMAGE["missing"][0])
    tiled_at(path, run)
    rows = corrupt(run)
    assert len(rows) == 1
    (Path(run.runs) / "tile" / "corrupt.csv").unlink()  # as after a run that was killed before it wrote it
    tiled_at(path, run)
    assert corrupt(run) == rows
    other = Path(shutil.copy(path, tmp_path / "other.svs"))
    tile_slides({"other": SlideFile(other)}, LENIENT, RunContext(run))
    assert [r["slide"] for r in corrupt(run)] == ["blob", "other"]
    tile_slides({"blob": SlideFile(svs_path)}, LENIENT, RunContext(run, overwrite=True))
    assert [r["slide"] for r in corrupt(run)] == ["other"]


def test_later_stages_never_see_a_bad_tile(svs_path: Path, tmp_path: Path, run: RunConfig) -> None:
    store = tiled_at(damaged(svs_path, tmp_path / "slides", DAMAGE["truncated"][0]), run)
    spec = store.mask_spec
    store.write_labels("all", {1: "t"}, {"digest": "x", "classes": ["t"]}, [((0, 0), np.ones(spec.shape, np.uint8))])
    bad = np.zeros((900, 1200), bool)
    bad[256:512, 512:768] = True
    samples = find_samples([store], "all", 1)
    assert len(samples) == len(store.patches().windows) > 0
    assert not any(cut(bad, s.window).any() for s in samples)
    cells = InstanceGrid(32, 32, 1).cells(store, 0.1)
    assert len(cells) > 0
    assert not any(bad[r * 32 : r * 32 + 32, c * 32 : c * 32 + 32].any() for r, c in cells)


def test_many_bad_tiles_are_told_in_one_line(
    svs_path: Path, tmp_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    path = damaged(svs_path, tmp_path / "slides", lambda p: [tamper(p, i, size=99) for i in range(20)])
    with caplog.at_level(logging.WARNING):
        report, _ = tile_slides({"blob": SlideFile(path)}, replace(CONFIG, max_corrupt=1.0), RunContext(run))
    assert report.rows[0]["patches"] == "0"
    assert len([r for r in caplog.records if "cannot be read" in r.getMessage()]) == 1
    assert len(corrupt(run)) == 17  # those that were needed
