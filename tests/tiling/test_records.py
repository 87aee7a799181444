"""Records of finished shards and the rows of bad tiles in them."""

from __future__ import annotations

from pathlib import Path

from wsipipe.slides.level import BadTile
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.records import PLAN, bad_from_rows, bad_to_rows, read_records, remove_records, write_record


def test_bad_tiles_are_rows_in_order() -> None:
    bad = {BadTile(1, 0, 0): "b", BadTile(0, 2, 1): "a"}
    assert bad_to_rows(bad) == [[0, 2, 1, "a"], [1, 0, 0, "b"]]
    assert bad_from_rows(bad_to_rows(bad)) == bad


def test_records_are_found_by_their_shard(job: TileJob) -> None:
    assert read_records(job) == {}
    write_record(job, 0, (10, 2), stored=3, copied=1, bad={BadTile(0, 1, 2): "torn"})
    write_record(job, 1, (0, 0), stored=1, copied=0, bad={})
    (job.partial / "written" / ".0.0.0.json.partial").write_text("{")
    assert read_records(job) == {
        (0, 10, 2): {"stored": 3, "copied": 1, "bad": [[0, 1, 2, "torn"]]},
        (1, 0, 0): {"stored": 1, "copied": 0, "bad": []},
    }


def test_a_complete_store_loses_its_plan_and_records(job: TileJob, tmp_path: Path) -> None:
    write_record(job, 0, (0, 0), stored=1, copied=0, bad={})
    for name in (PLAN, "zarr.json"):
        (job.partial / name).touch()
    job.partial.rename(job.target)
    for _ in range(2):
        remove_records(job.target)
        assert [p.name for p in job.target.iterdir()] == ["zarr.json"]
