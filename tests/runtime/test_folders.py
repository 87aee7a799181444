"""A part of a store takes the place of another, and one is left."""

from __future__ import annotations

import os
from pathlib import Path

from wsipipe.runtime.atomic import swap


def test_swap_replaces_a_folder_and_leaves_one(tmp_path: Path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    swap(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == ["new"]
