"""How a part of a store takes the place of another: written aside, then renamed, under a lock where lists change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


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
