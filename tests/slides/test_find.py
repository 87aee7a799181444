"""Finding slides: files, folders and manifests; every problem in one error."""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.errors import ConfigError
from wsipipe.labels import slide_id_of
from wsipipe.slides import SlideFile, find_slides, open_slide


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_folders_and_dicom_folders_are_found(tmp_path: Path) -> None:
    touch(tmp_path / "in/b.svs", tmp_path / "in/a.TIFF", tmp_path / "in/notes.txt", tmp_path / "in/dcm/1.dcm")
    touch(
        tmp_path / "in/.hidden.svs", tmp_path / "in/folder.svs/x.txt", tmp_path / "c (1).ndpi", tmp_path / "d.ome.tif"
    )
    found = find_slides([tmp_path / "in", tmp_path / "c (1).ndpi", tmp_path / "d.ome.tif"])
    assert {k: v.path.name for k, v in found.items()} == {
        "a": "a.TIFF", "b": "b.svs", "dcm": "dcm", "c_1_": "c (1).ndpi", "d.ome": "d.ome.tif",
    }  # fmt: skip
    assert all(v == SlideFile(v.path) for v in found.values())
    assert list(find_slides([tmp_path / "in/dcm"])) == ["dcm"]


def test_a_slide_given_twice_is_one_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.svs")
    assert len(find_slides([tmp_path / "a.svs", tmp_path, tmp_path / "a.svs"])) == 1
    monkeypatch.chdir(tmp_path)
    assert len(find_slides([tmp_path / "a.svs", Path("a.svs"), Path()])) == 1


def test_one_error_lists_all_problems(tmp_path: Path) -> None:
    touch(tmp_path / "x/a.svs", tmp_path / "y/A.svs", tmp_path / "empty/notes.md")
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "m.csv").write_text("path,mpp\nnowhere.svs,0.5\n")
    names = ("none.svs", "x", "empty", "y", "pipe.svs", "m.csv")
    with pytest.raises(ConfigError) as caught:
        find_slides([tmp_path / name for name in names])
    for part in (
        f"{tmp_path}/none.svs: no such file or folder",
        f"{tmp_path}/empty: no slides in this folder; known are .bif, .czi, ",
        f"{tmp_path}/pipe.svs: not a readable file or folder",
        f"{tmp_path}/m.csv: line 2: no such file nowhere.svs",
        f"{tmp_path}/x/a.svs and {tmp_path}/y/A.svs would both get the id a and A, one name on many file systems; ",
    ):
        assert part in str(caught.value)


def test_two_slides_of_one_id_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x/a.svs", tmp_path / "y/a.svs")
    with pytest.raises(
        ConfigError, match="would both get the id a; rename one, tile them into different folders, or set slide_id"
    ):
        find_slides([tmp_path / "x", tmp_path / "y"])
    touch(tmp_path / "x/a.ndpi")
    with pytest.raises(ConfigError, match=r"x/a\.ndpi and .*x/a\.svs would both get the id a;"):
        find_slides([tmp_path / "x"])


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    (tmp_path / "b.svs").symlink_to(tmp_path / "a.svs")
    with pytest.raises(ConfigError, match=r"b\.svs is listed as a and as b; keep one id per file"):
        find_slides([tmp_path])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.svs").symlink_to(tmp_path / "a.svs")
    assert list(find_slides([tmp_path / "elsewhere", tmp_path / "a.svs"])) == ["a"]


def test_a_warning_counts_the_ignored_files_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(*(tmp_path / name for name in ("a.svs", "b.mrxs", "b/Slide.dat", "c.vsi", "d.VSI", "README", "more/e.svs")))
    with caplog.at_level(logging.WARNING):
        assert list(find_slides([tmp_path])) == ["a", "b"]
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}: ignoring 2 x .vsi, 1 x file without suffix, 1 x folder: unknown suffix; "
        "name a file explicitly to try it as a slide"
    ]
    assert list(find_slides([tmp_path / "c.vsi"])) == ["c"]


def test_a_manifest_row_takes_precedence_over_the_folder(tmp_path: Path) -> None:
    touch(tmp_path / "in/a.svs", tmp_path / "in/b.svs", tmp_path / "tissue.png")
    table = tmp_path / "in.csv"
    table.write_text("slide_id,path,mpp,mask\ncase 1,in/a.svs,0.25,tissue.png\n")
    found = find_slides([tmp_path / "in", table, table])
    assert found == {
        "case_1": SlideFile(tmp_path / "in/a.svs", (0.25, 0.25), tmp_path / "tissue.png"),
        "b": SlideFile(tmp_path / "in/b.svs"),
    }


@pytest.mark.parametrize(("rows", "message"), [
    ("x,a.svs,\nx,b.svs,", r"a\.svs and .*b\.svs would both get the id x;"),
    ("x,a.svs,\ny,a.svs,", r"a\.svs is listed as x and as y; keep one id per file"),
    ("x,a.svs,0.5\nx,a.svs,0.25", r"a\.svs is listed twice with different mpp or mask; keep one row"),
])  # fmt: skip
def test_rows_that_contradict_each_other_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    touch(tmp_path / "a.svs", tmp_path / "b.svs")
    (tmp_path / "m.csv").write_text(f"slide_id,path,mpp\n{rows}\n")
    with pytest.raises(ConfigError, match=message):
        find_slides([tmp_path / "m.csv"])


def test_a_name_with_any_characters_is_found_and_opened(tmp_path: Path, svs_path: Path) -> None:
    folder = tmp_path / "my slides"
    folder.mkdir()
    path = folder / "ü 玻片 #1%.svs"
    path.write_bytes(svs_path.read_bytes())
    assert find_slides([folder]) == {"s_1_": SlideFile(path)}
    slide = open_slide(path, "s_1_")
    assert slide.read((600, 400), 0, (20, 10)).shape == (10, 20, 3)
    assert slide.info.path == str(path)
    slide.close()


@given(st.text("aeuüéñğạ玻가 #%1.", min_size=1))
def test_both_unicode_spellings_of_a_name_give_one_id(name: str) -> None:
    assert slide_id_of(unicodedata.normalize("NFD", name)) == slide_id_of(unicodedata.normalize("NFC", name))


def test_pictures_next_to_slides_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "a.truth.png", tmp_path / "thumbnail.jpg")
    assert list(find_slides([tmp_path])) == ["a"]
    (tmp_path / "a.svs").unlink()
    assert list(find_slides([tmp_path])) == ["a.truth", "thumbnail"]
