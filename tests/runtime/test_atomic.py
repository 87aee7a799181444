"""Files and folders are replaced as a whole: old or new, and nothing left beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from wsipipe.runtime.atomic import (
    partial_path,
    remove_folder,
    replace_folder,
    replacing,
    write_bytes,
    write_csv,
    write_json,
)


def test_write_json_replaces_the_file_and_leaves_no_partial(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": 1, "a": [1, 2]})
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_write_json_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, loop)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_replacing_a_file_that_fails_keeps_the_old_one_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"

    def write(text: str, error: BaseException | None = None) -> None:
        with replacing(path) as partial:
            partial.write_text(text)
            if error:
                raise error

    write("first")
    for error in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write("second", error)
    assert (path.read_text(), os.listdir(path.parent)) == ("first", ["a.txt"])
    write_bytes(path, b"third")
    assert (path.read_bytes(), os.listdir(path.parent)) == (b"third", ["a.txt"])


def test_temporary_paths_are_hidden_beside_the_path(tmp_path: Path) -> None:
    assert partial_path(tmp_path / "a.zarr") == tmp_path / ".a.zarr.partial"
    assert partial_path(tmp_path / "a.zarr", "labels", "b") == tmp_path / ".a.zarr.labels.b.partial"


def test_a_row_of_a_table_may_lack_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("x", "y"), [{"x": 1}, {"y": "b,c"}])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["x,y", "1,", ',"b,c"']


@pytest.mark.parametrize("exists", [True, False])
def test_replace_folder_leaves_one_folder(tmp_path: Path, exists: bool) -> None:
    for name in ("new", "old")[: 1 + exists]:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == ["new"]


def test_remove_folder_leaves_nothing(tmp_path: Path) -> None:
    for name in ("a", ".a.old"):  # the second was left by a process that was killed
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_folder(tmp_path / "a")
    assert os.listdir(tmp_path) == []
