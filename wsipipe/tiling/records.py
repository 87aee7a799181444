"""Records of a cut-off run: one JSON file per finished shard, so that a later run resumes at the next shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsipipe.runtime.atomic import write_json
from wsipipe.slides.level import BadTile
from wsipipe.store.shards import Cell
from wsipipe.tiling.job import TileJob

PLAN = "plan.npz"
"""File name of the plan in an unfinished store."""

WRITTEN = "written"
"""Folder of the records in an unfinished store."""


def record_file(job: TileJob, level: int, shard: Cell) -> Path:
    """The record of one shard."""
    return job.partial / WRITTEN / f"{level}.{shard[0]}.{shard[1]}.json"


def write_record(
    job: TileJob, level: int, shard: Cell, *, stored: int, copied: int, bad: Mapping[BadTile, str]
) -> None:
    """Record a finished shard: chunks stored, chunks copied from the slide, and tiles that cannot be read."""
    record = {"stored": stored, "copied": copied, "bad": bad_to_rows(bad)}
    write_json(record_file(job, level, shard), record)


def read_records(job: TileJob) -> dict[tuple[int, int, int], dict[str, Any]]:
    """(level, row, col) of every finished shard -> its record."""
    found = {}
    for path in sorted((job.partial / WRITTEN).glob("*.json")):
        level, row, col, _ = path.name.split(".")
        found[int(level), int(row), int(col)] = json.loads(path.read_text())
    return found


def remove_records(store: Path) -> None:
    """Remove the plan and the records from a complete store."""
    shutil.rmtree(store / WRITTEN, ignore_errors=True)
    (store / PLAN).unlink(missing_ok=True)


def bad_to_rows(bad: Mapping[BadTile, str]) -> list[list[Any]]:
    """Bad tiles as JSON-ready rows [level, row, col, reason], sorted."""
    return [[t.level, t.row, t.col, why] for t, why in sorted(bad.items())]


def bad_from_rows(rows: Sequence[Sequence[Any]]) -> dict[BadTile, str]:
    """The bad tiles of `bad_to_rows`."""
    return {BadTile(level, row, col): why for level, row, col, why in rows}
