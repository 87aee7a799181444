"""Atomic replacement of files and folders: write aside, then rename, so that a reader sees the old or the new one."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file aside, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(data)
    os.replace(aside, path)


def write_json(path: Path, data: object) -> None:
    """Write JSON, as `write_bytes`."""
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True, default=str) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table, as `write_bytes`; a row without a column leaves its cell empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def lock_file(path: Path) -> Path:
    """The file that writers of the store at `path` lock while its shared lists change."""
    return path.with_name(f".{path.name}.lock")


def swap(aside: Path, final: Path) -> None:
    """Put folder `aside` in the place of `final`, which may exist; a reader finds the old one or the new one."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(aside, final)
    shutil.rmtree(old, ignore_errors=True)
