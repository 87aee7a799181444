"""Atomic replacement of files and folders: write a temporary one, then rename, so readers see the old or the new."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def partial_path(path: Path, *more: str) -> Path:
    """The temporary path beside `path`: `.<name>.partial`, or `.<name>.<more>.partial` for a part of it."""
    return path.with_name(".".join(["", path.name, *more, "partial"]))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file to; it replaces `path` when the block succeeds and is removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; parent folders are created."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, data: object) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True, default=str) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table atomically; missing columns of a row become empty cells."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def replace_folder(new: Path, final: Path) -> None:
    """Rename folder `new` to `final`, which may exist and is then removed."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: readers see all of it or nothing."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    shutil.rmtree(old, ignore_errors=True)
