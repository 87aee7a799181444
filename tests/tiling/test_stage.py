"""Many slides through one pool: each in its row, whatever becomes of the others, and the pool never idle or flooded."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tilings import CONFIG, corrupt, files, ledger, stamps, tile_one

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import Window
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.lock import SlideLock
from wsipipe.slides import SlideFile, find_slides
from wsipipe.store import SlideStore
from wsipipe.tiling import stage
from wsipipe.tiling.plan import plan_chunks
from wsipipe.tiling.stage import TASKS_PER_WORKER
from wsipipe.tiling.stage import run as tile_slides


@pytest.fixture(scope="module")
def blank_path(tmp_path_factory: pytest.TempPathFactory, svs_writer: Callable[..., None]) -> Path:
    path = tmp_path_factory.mktemp("blank") / "blank.svs"
    svs_writer(path, np.full((400, 500, 3), 243, np.uint8), factors=(4,))
    return path


def statuses(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(r["item"], r["status"]) for r in rows]


def test_exactly_the_planned_chunks_exist(tiled: Path) -> None:
    store = SlideStore(tiled)
    np.testing.assert_array_equal(store.pixels().present(), plan_chunks(store.patches(), 256))


def test_every_kept_patch_has_its_tissue(tiled: Path, tissue_rgb: tuple[Any, Any]) -> None:
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


def test_a_second_run_skips_and_touches_nothing(svs_path: Path, run: RunConfig) -> None:
    tile_slides({"blob": SlideFile(svs_path)}, CONFIG, RunContext(run))
    before = stamps(Path(run.stores))
    report, stores = tile_slides({"blob": SlideFile(svs_path)}, CONFIG, RunContext(run))
    assert statuses(report.rows) == [("blob", "skipped")]
    assert report.rows[0]["copied"] == "100%"
    assert [p.name for p in stores] == ["blob.zarr"]
    assert stamps(Path(run.stores)) == before


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("config", [CONFIG, TileConfig(mpp=1.0, patch_px=64)])
def test_any_number_of_workers_writes_the_same_bytes(
    workers: int, config: TileConfig, wide_path: Path, tmp_path: Path
) -> None:
    one, many = (tile_one(wide_path, tmp_path / str(n), config, workers=n) for n in (1, workers))
    assert files(one.path) == files(many.path)


@pytest.mark.usefixtures("probed")
def test_rows_come_in_the_given_order_and_a_bad_slide_costs_itself(
    svs_path: Path, blank_path: Path, wide_path: Path, run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rubbish.svs").write_bytes(b"rubbish")
    slides = {
        "wide": SlideFile(wide_path),
        "rubbish": SlideFile(tmp_path / "rubbish.svs"),
        "blank": SlideFile(blank_path),
        "lost": SlideFile(tmp_path / "lost.svs"),
        "blob": SlideFile(svs_path),
        "unmasked": SlideFile(svs_path, mask=tmp_path / "no.png"),
    }
    report, stores = tile_slides(slides, CONFIG, RunContext(run))
    expected = ["done", "failed", "empty", "failed", "done", "failed"]
    assert statuses(report.rows) == list(zip(slides, expected, strict=True))
    assert statuses(ledger(run)) == statuses(report.rows)
    assert "no reader knows this format" in report.rows[1]["reason"]
    assert "no such file" in report.rows[3]["reason"]
    assert "the tissue mask cannot be read" in report.rows[5]["reason"]
    assert [p.name for p in stores] == ["wide.zarr", "blank.zarr", "blob.zarr"]
    assert sorted(p.name for p in Path(run.stores).iterdir()) == ["blank.zarr", "blob.zarr", "wide.zarr"]
    assert "rubbish: failed: " in caplog.text
    assert report.exit_code == 1
    again = tile_slides(slides, CONFIG, RunContext(replace(run, max_failed="3")))[0]
    assert (again.exit_code, again.rows[0]["status"]) == (0, "skipped")


def test_a_store_whose_patches_are_damaged_costs_itself(svs_path: Path, wide_path: Path, run: RunConfig) -> None:
    slides = {"blob": SlideFile(svs_path), "wide": SlideFile(wide_path)}
    tile_slides(slides, CONFIG, RunContext(run))
    shutil.rmtree(Path(run.stores) / "blob.zarr" / "patches" / "128_128" / "cell")
    report, stores = tile_slides(slides, CONFIG, RunContext(run))
    assert statuses(report.rows) == [("blob", "failed"), ("wide", "skipped")]
    assert "damaged" in report.rows[0]["reason"]
    assert [p.name for p in stores] == ["wide.zarr"]


def test_the_ledger_tells_what_became_of_each_slide(svs_path: Path, run: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_bytes(b"bad")
    report, stores = tile_slides(
        {"blob": SlideFile(svs_path), "bad": SlideFile(tmp_path / "bad.svs")}, CONFIG, RunContext(run)
    )
    good, bad = ledger(run)
    assert (good["store"], good["copied"], good["corrupt"], good["reason"]) == (str(stores[0]), "100%", "0", "")
    assert int(good["patches"]) == len(SlideStore(stores[0]).patches().cell)
    assert float(good["seconds"]) >= 0
    assert bad["reason"] == report.rows[1]["reason"] != ""
    assert not (Path(run.runs) / "tile" / "corrupt.csv").exists()


def test_a_blank_slide_is_empty_and_says_so(blank_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report, stores = tile_slides({"blank": SlideFile(blank_path)}, CONFIG, RunContext(run))
    assert statuses(report.rows) == [("blank", "empty")]
    assert report.exit_code == 0
    assert "blank: no tissue (nothing darker than glass)" in caplog.text
    store = SlideStore(stores[0])
    assert (len(store.patches().cell), store.meta["note"]) == (0, "nothing darker than glass")
    assert (store.read(Window(0, 0, 500, 400)) == 255).all()
    assert tile_slides({"blank": SlideFile(blank_path)}, CONFIG, RunContext(run))[0].rows[0]["status"] == "skipped"


def test_too_little_tissue_for_any_patch_names_the_option(
    svs_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report, _ = tile_slides(
            {"blob": SlideFile(svs_path)}, TileConfig(patch_px=2048, min_tissue=1.0), RunContext(run)
        )
    assert statuses(report.rows) == [("blob", "empty")]
    assert "see --min-tissue" in caplog.text


def test_an_error_of_the_configuration_ends_the_run(
    svs_path: Path, wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise ConfigError("wrong for all")

    monkeypatch.setattr(stage, "write_shard", wrong)
    with pytest.raises(ConfigError, match="wrong for all"):
        tile_slides({"blob": SlideFile(svs_path), "wide": SlideFile(wide_path)}, CONFIG, RunContext(run))
    assert not list(Path(run.stores).glob(".*.tiling"))


def test_progress_counts_slides_and_chunks(svs_path: Path, run: RunConfig, tmp_path: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    slides = {"lost": SlideFile(tmp_path / "lost.svs"), "blob": SlideFile(svs_path)}
    tile_slides(
        slides, CONFIG, RunContext(run, lambda task, done, total, note="": told.append((task, done, total, note)))
    )
    assert [t for t in told if t[0] == "tile"] == [("tile", 0, 2, ""), ("tile", 1, 2, "lost"), ("tile", 2, 2, "blob")]
    chunks = [t for t in told if t[0] == "tile blob"]
    assert chunks
    assert chunks[-1][1] == chunks[-1][2] > 0


class Watched(ThreadPoolExecutor):
    """Counts the tasks that are submitted and not yet done."""

    most = 0

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.flying, self.lock = 0, threading.Lock()

    def submit(self, task: Callable[..., Any], /, *what: Any, **more: Any) -> Future[Any]:
        def counted() -> object:
            try:
                return task(*what, **more)
            finally:
                with self.lock:
                    self.flying -= 1

        with self.lock:
            self.flying += 1
            Watched.most = max(Watched.most, self.flying)
        return super().submit(counted)


@pytest.mark.parametrize("workers", [1, 2])
def test_slides_overlap_in_the_pool_and_tasks_in_flight_are_bounded(
    workers: int, wide_path: Path, svs_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def watched(n: int, dask: str) -> Any:
        with Watched(n) as pool:
            yield pool, n

    monkeypatch.setattr(stage, "executor", watched)
    begun: list[tuple[str, str]] = []
    for name in ("prepare", "write_shard", "finish_store"):
        real = getattr(stage, name)

        def noted(job: Any, *more: Any, name: Any = name, real: Any = real) -> Any:
            begun.append((job.slide_id, name))
            return real(job, *more)

        monkeypatch.setattr(stage, name, noted)
    Watched.most = 0
    slides = {n: SlideFile(p) for n, p in (("a", wide_path), ("b", svs_path), ("c", wide_path), ("d", svs_path))}
    report, _ = tile_slides(slides, CONFIG, RunContext(replace(run, workers=workers)))
    assert statuses(report.rows) == [(n, "done") for n in "abcd"]
    assert 1 < Watched.most <= TASKS_PER_WORKER * workers
    for one, next_one in (("a", "b"), ("b", "c"), ("c", "d")):
        assert begun.index((next_one, "prepare")) < begun.index((one, "finish_store"))
    assert [s for s, n in begun if n == "write_shard"].count("a") == 4


def test_two_runs_on_one_slide_end_with_the_name_of_the_one_that_has_it(
    svs_path: Path, run: RunConfig, tmp_path: Path
) -> None:
    stores = Path(run.stores)
    held = SlideLock(stores / ".blob.zarr.tiling", "blob")
    held.acquire()
    aside = stores / ".blob.zarr.partial"
    aside.mkdir()
    (aside / "theirs").touch()
    wsipipe = [sys.executable, "-c", "from wsipipe.cli import main; main()"]
    call = [*wsipipe, "tile", str(svs_path), "--stores", run.stores, "--runs", run.runs]
    loser = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert loser.returncode == 1, loser.stderr
    assert loser.stdout == ""
    holder = f"is locked by process {os.getpid()} on {socket.gethostname()} since 20"
    assert "blob: failed: " in loser.stderr
    assert holder in " ".join(loser.stderr.split())
    assert (aside / "theirs").exists()
    assert f"process {os.getpid()} " in (stores / ".blob.zarr.tiling").read_text()
    held.release()
    assert sorted(p.name for p in stores.iterdir()) == [aside.name]
    winner = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (winner.returncode, winner.stdout) == (0, f"{stores / 'blob.zarr'}\n"), winner.stderr
    assert [p.name for p in stores.iterdir()] == ["blob.zarr"]
    assert statuses(ledger(run)) == [("blob", "done")]


def test_a_slide_that_is_held_costs_only_itself(svs_path: Path, wide_path: Path, run: RunConfig) -> None:
    held = SlideLock(Path(run.stores) / ".blob.zarr.tiling", "blob")
    held.acquire()
    try:
        report, _ = tile_slides({"blob": SlideFile(svs_path), "wide": SlideFile(wide_path)}, CONFIG, RunContext(run))
    finally:
        held.release()
    assert statuses(report.rows) == [("blob", "failed"), ("wide", "done")]
    assert "wait for it to finish, or stop it" in report.rows[0]["reason"]


def test_what_a_task_of_one_slide_raises_costs_that_slide(
    svs_path: Path, wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.finish_store

    def fails(job: Any, cache: Any) -> None:
        if job.slide_id == "blob":
            raise StoreError("blob: no room")
        real(job, cache)

    monkeypatch.setattr(stage, "finish_store", fails)
    report, stores = tile_slides({"blob": SlideFile(svs_path), "wide": SlideFile(wide_path)}, CONFIG, RunContext(run))
    assert (report.rows[0]["reason"], [p.name for p in stores]) == ("blob: no room", ["wide.zarr"])
    assert [p.name for p in Path(run.stores).iterdir()] == ["wide.zarr"]


def test_overlapping_patches_cost_a_table_not_pixels(svs_path: Path, tmp_path: Path, tiled: Path) -> None:
    dense, plain = tile_one(svs_path, tmp_path, replace(CONFIG, stride_px=64)), SlideStore(tiled)
    assert len(dense.patches().cell) > 3 * len(plain.patches().cell)
    assert (dense.path / "0/c/0/0/0").stat().st_size < 1.3 * (plain.path / "0/c/0/0/0").stat().st_size


def test_real_slides_are_tiled_with_one_bad_file_among_them(real_wsi: Path, run: RunConfig) -> None:
    slides = find_slides(
        [real_wsi / n for n in ("CMU-1-Small-Region.svs", "test3-DAPI-2-(387).ndpi", "unreadable.svs")]
    )
    report, stores = tile_slides(slides, TileConfig(mpp=2.0, patch_px=64), RunContext(replace(run, max_failed="1")))
    status = {r["item"]: r["status"] for r in report.rows}
    assert status == {"CMU-1-Small-Region": "done", "test3-DAPI-2-_387_": "empty", "unreadable": "failed"}
    assert report.exit_code == 0
    assert len(stores) == 2
    assert corrupt(run) == []
