"""A run that was cut off goes on where it was, to the same bytes, and throws away what no longer fits."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tilings import CONFIG, corrupt, files, ledger, stamps

from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.errors import SlideError
from wsipipe.runtime.context import RunContext
from wsipipe.slides import SlideFile
from wsipipe.tiling import stage
from wsipipe.tiling.cache import SlideCache
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.pixels import ShardTask, write_shard
from wsipipe.tiling.stage import run as tile_slides

SHARDS = 4
"""Shards of pixels that the wide slide has: two of level 0, one of each coarser level."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, wide_path: Path) -> Path:
    """Folders of killed runs by the change that they did not come to, and `whole` of the run that was not."""
    return kill(wide_path, tmp_path_factory.mktemp("killed"), 12)


def kill(slide: Path, folder: Path, points: int) -> Path:
    script = Path(__file__).parents[1] / "support" / "killed.py"
    subprocess.run([sys.executable, script, slide, folder, str(points)], check=True, stdout=subprocess.DEVNULL)
    return folder


def runs_of(folder: Path) -> RunConfig:
    return RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=2)


def go(path: Path, run: RunConfig, config: TileConfig = CONFIG, overwrite: bool = False) -> dict[str, str]:
    """Tile one slide; its row in the ledger."""
    report, _ = tile_slides({"wide": SlideFile(path)}, config, RunContext(run, overwrite=overwrite))
    return report.rows[0]


def committed(folder: Path) -> set[str]:
    """The shard files that a run which was cut off has recorded as written, relative to the store."""
    records = (folder / "stores" / ".wide.zarr.partial" / "written").glob("*.json")
    parts = (r.name.split(".") for r in records)
    return {f"{level}/c/0/{row}/{col}" for level, row, col, _ in parts}


def assert_goes_on(slide: Path, folder: Path, whole: Path, into: Path) -> int:
    """The run of `folder` ends as `whole` did, in a copy; returns the number of shards that it did not write again."""
    shutil.copytree(folder, into)
    kept = committed(into)
    before = stamps(into / "stores" / ".wide.zarr.partial") if kept else {}
    row = go(slide, runs_of(into))
    assert row["status"] == ("skipped" if (folder / "stores" / "wide.zarr").exists() else "done")
    assert files(into / "stores") == files(whole / "stores")
    after = stamps(into / "stores" / "wide.zarr")
    assert {k: after[k] for k in kept} == {k: before[k] for k in kept}
    return len(kept)


def test_a_killed_run_ends_in_the_bytes_of_one_that_was_not(killed: Path, wide_path: Path, tmp_path: Path) -> None:
    points = sorted(int(p.name) for p in killed.iterdir() if p.name.isdecimal())
    kept = [assert_goes_on(wide_path, killed / str(k), killed / "whole", tmp_path / str(k)) for k in points]
    assert len(points) == 12
    assert {0, SHARDS} < set(kept)  # before the first, between, and after the last


@pytest.mark.slow
def test_a_run_killed_at_any_change_ends_in_the_same_bytes(wide_path: Path, tmp_path: Path) -> None:
    kill(wide_path, tmp_path, 0)
    points = [p for p in tmp_path.iterdir() if p.name.isdecimal()]
    assert len(points) > 150
    kept = set()
    for point in points:
        kept.add(assert_goes_on(wide_path, point, tmp_path / "whole", tmp_path / "again"))
        shutil.rmtree(tmp_path / "again")
        shutil.rmtree(point)
    assert kept == set(range(SHARDS + 1))


class Stop:
    """Stands for `write_shard`: raises before the shard after `most`, or in the place of what a test says."""

    def __init__(self, most: int, error: BaseException) -> None:
        self.most, self.error = most, error
        self.written: list[ShardTask] = []

    def __call__(self, job: TileJob, task: ShardTask, cache: SlideCache) -> int:
        if len(self.written) == self.most:
            raise self.error
        self.written.append(task)
        return write_shard(job, task, cache)


@pytest.fixture
def cut_off(wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that an interrupted run left, with two shards written."""
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_shard", Stop(2, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            go(wide_path, replace(run, workers=1))
    aside = Path(run.stores) / ".wide.zarr.partial"
    assert [p.name for p in Path(run.stores).iterdir()] == [aside.name]
    assert len(list((aside / "written").iterdir())) == 2
    yield aside
    assert not aside.exists()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Counts the shards that are written."""
    stop = Stop(-1, RuntimeError())
    monkeypatch.setattr(stage, "write_shard", stop)
    return stop


def test_an_interrupted_run_keeps_what_it_wrote_and_goes_on(
    cut_off: Path, counted: Stop, killed: Path, wide_path: Path, run: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.INFO):
        report, _ = tile_slides(
            {"wide": SlideFile(wide_path)},
            CONFIG,
            RunContext(run, lambda task, done, total, note="": told.append((task, done, total))),
        )
    assert [r["status"] for r in report.rows] == ["done"]
    assert len(counted.written) == SHARDS - 2
    assert "wide: resuming: " in caplog.text
    shards = [t for t in told if t[0] == "tile wide"]
    assert shards[0][1] - counted.written[0].chunks > 0  # what was there counts as done
    assert shards[-1][1] == shards[-1][2]
    assert files(Path(run.stores)) == files(killed / "whole" / "stores")


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, quality=70, codec="zstd"),
        replace(CONFIG, min_tissue=0.5),
        replace(CONFIG, patch_px=64),
        replace(CONFIG, qc=False),
        replace(CONFIG, mpp=1.0),
    ],
)
def test_other_settings_throw_away_what_was_cut_off(
    config: TileConfig, cut_off: Path, counted: Stop, wide_path: Path, run: RunConfig, tmp_path: Path
) -> None:
    fresh = runs_of(tmp_path / "fresh")
    assert go(wide_path, fresh, config)["status"] == "done"
    expected_shards, counted.written = len(counted.written), []
    assert go(wide_path, run, config)["status"] == "done"
    assert len(counted.written) == expected_shards
    assert files(Path(run.stores)) == files(Path(fresh.stores))


def test_settings_that_change_no_pixel_go_on(cut_off: Path, counted: Stop, wide_path: Path, run: RunConfig) -> None:
    assert go(wide_path, run, replace(CONFIG, max_corrupt=0.5))["status"] == "done"
    assert len(counted.written) == SHARDS - 2


def test_a_slide_that_changed_throws_away_what_was_cut_off(
    cut_off: Path, counted: Stop, wide_path: Path, run: RunConfig, tmp_path: Path
) -> None:
    other = Path(shutil.copy(wide_path, tmp_path / "wide.svs"))
    assert go(other, run)["status"] == "done"  # the same content at another place
    assert len(counted.written) == SHARDS - 2


def test_a_slide_of_other_content_throws_away_what_was_cut_off(
    cut_off: Path,
    counted: Stop,
    run: RunConfig,
    tmp_path: Path,
    svs_writer: Callable[..., None],
    tissue_drawer: Callable[..., tuple[Any, Any]],
) -> None:
    svs_writer(tmp_path / "wide.svs", tissue_drawer((5408, 304), 1)[0])
    assert go(tmp_path / "wide.svs", run)["status"] == "done"
    assert len(counted.written) == SHARDS


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def first_shard(aside: Path) -> Path:
    record = min((aside / "written").iterdir()).name.split(".")
    return aside / record[0] / "c" / "0" / record[1] / record[2]


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda aside: torn(first_shard(aside)), 1),
        (lambda aside: first_shard(aside).unlink(), 1),
        (lambda aside: first_shard(aside).write_bytes(b""), 1),
        (lambda aside: torn(min((aside / "written").iterdir())), 1),
        (lambda aside: min((aside / "written").iterdir()).write_text("null"), 1),
        (lambda aside: min((aside / "written").iterdir()).write_bytes(b""), 1),
        (lambda aside: min((aside / "written").iterdir()).unlink(), 1),
        (lambda aside: shutil.rmtree(aside / "written"), 2),
        (lambda aside: torn(aside / "plan.npz"), 2),
        (lambda aside: (aside / "plan.npz").write_bytes(b""), 2),
        (lambda aside: (aside / "plan.npz").unlink(), 2),
        (lambda aside: torn(aside / "zarr.json"), 2),
        (lambda aside: (aside / "1" / "zarr.json").write_bytes(b""), 2),
        (lambda aside: (aside / "junk").touch(), 0),
    ],
)
def test_what_is_damaged_is_written_again(
    damage: Any, again: int, cut_off: Path, counted: Stop, killed: Path, wide_path: Path, run: RunConfig
) -> None:
    damage(cut_off)
    assert go(wide_path, run)["status"] == "done"
    assert len(counted.written) == SHARDS - 2 + again
    found = files(Path(run.stores))
    found.pop("wide.zarr/junk", None)
    assert found == files(killed / "whole" / "stores")


def test_what_others_left_aside_is_cleared(wide_path: Path, run: RunConfig) -> None:
    aside = Path(run.stores) / ".wide.zarr.partial"
    for left in (aside, aside.with_name(f".{aside.name}.labels.tissue.partial")):
        left.mkdir(parents=True)
        (left / "junk").touch()
    aside.with_name(f".{aside.name}.lock").touch()
    go(wide_path, run)
    assert [p.name for p in Path(run.stores).iterdir()] == ["wide.zarr"]
    assert not (Path(run.stores) / "wide.zarr" / "junk").exists()


def test_a_slide_that_fails_leaves_nothing_behind(
    cut_off: Path, wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "write_shard", Stop(1, SlideError("wide.svs: gone")))
    left = cut_off.with_name(f".{cut_off.name}.labels.tissue.partial")
    left.mkdir()
    row = go(wide_path, run)
    assert (row["status"], row["reason"]) == ("failed", "wide.svs: gone")
    assert list(Path(run.stores).iterdir()) == []
    assert (ledger(run)[0]["status"], corrupt(run)) == ("failed", [])


def test_an_error_that_is_no_fault_of_the_slide_keeps_what_is_written(
    wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_shard", Stop(3, OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            go(wide_path, replace(run, workers=1))
    assert [p.name for p in Path(run.stores).iterdir()] == [".wide.zarr.partial"]
    stop = Stop(-1, RuntimeError())
    monkeypatch.setattr(stage, "write_shard", stop)
    assert go(wide_path, run)["status"] == "done"
    assert len(stop.written) == SHARDS - 3


def test_running_shards_end_before_an_interrupted_run_does(
    wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(task: str, done: int, total: int, note: str = "") -> None:
        if task == "tile wide":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tile_slides({"wide": SlideFile(wide_path)}, CONFIG, RunContext(replace(run, workers=1), interrupted))
    aside = Path(run.stores) / ".wide.zarr.partial"
    records = [json.loads(p.read_text()) for p in (aside / "written").iterdir()]
    assert 1 <= len(records) <= 3
    assert not [p for p in aside.rglob("*.partial") if p.is_file()]
    assert ledger(run) == []


def test_an_interrupted_run_holds_its_slide_until_the_last_shard_has_ended(
    wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    number, second = itertools.count(), threading.Event()

    def slow(job: TileJob, shard: ShardTask, cache: SlideCache) -> int:
        """The first shard ends, which interrupts the run, once another has begun, which ends later."""
        first = next(number) == 0
        chunks = write_shard(job, shard, cache)
        if first:
            assert second.wait(60)
        else:
            second.set()
            time.sleep(0.3)
            held.append((Path(run.stores) / ".wide.zarr.tiling").exists())
        return chunks

    def interrupted(task: str, done: int, total: int, note: str = "") -> None:
        if task == "tile wide":
            raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_shard", slow)
    with pytest.raises(KeyboardInterrupt):
        tile_slides({"wide": SlideFile(wide_path)}, CONFIG, RunContext(replace(run, workers=4), interrupted))
    assert held
    assert all(held)
    assert not list(Path(run.stores).glob(".*.tiling"))


def test_overwriting_may_be_cut_off_too(
    wide_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch, counted: Stop
) -> None:
    go(wide_path, run)
    before, other = files(Path(run.stores)), replace(CONFIG, quality=70, codec="zstd")
    counted.written, counted.most, counted.error = [], 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(wide_path, replace(run, workers=1), other, overwrite=True)
    kept = {k: v for k, v in files(Path(run.stores)).items() if k.startswith("wide.zarr/")}
    assert kept == before
    counted.written, counted.most = [], -1
    assert go(wide_path, run, other, overwrite=True)["status"] == "done"
    assert len(counted.written) == SHARDS - 2
    assert os.listdir(run.stores) == ["wide.zarr"]


def test_what_overwriting_left_goes_when_the_old_store_is_wanted_after_all(
    wide_path: Path, run: RunConfig, counted: Stop
) -> None:
    go(wide_path, run)
    counted.written, counted.most, counted.error = [], 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(wide_path, replace(run, workers=1), replace(CONFIG, codec="zstd"), overwrite=True)
    assert go(wide_path, run)["status"] == "skipped"
    assert os.listdir(run.stores) == ["wide.zarr"]


def test_a_run_that_was_killed_between_the_two_renames_of_a_replacement_is_made_again(
    wide_path: Path, run: RunConfig
) -> None:
    go(wide_path, run)
    stores, before = Path(run.stores), files(Path(run.stores))
    (stores / "wide.zarr").rename(stores / ".wide.zarr.old")
    assert go(wide_path, run)["status"] == "done"
    assert files(stores) == before
