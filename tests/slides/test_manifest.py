"""Manifests: columns as other tools name them, one slide per row, every problem in one error."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.errors import ConfigError
from wsipipe.slides.base import SlideFile
from wsipipe.slides.manifest import read_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files to list: two slides, a DICOM folder, a mask."""
    folder = tmp_path_factory.mktemp("listed")
    (folder / "slides/dcm").mkdir(parents=True)
    for name in ("slides/a b.svs", "slides/ü.svs", "slides/dcm/1.dcm", "mask.png"):
        (folder / name).touch()
    return folder


def read(folder: Path, text: str | bytes) -> list[tuple[str, SlideFile]]:
    """What a manifest with this content lists."""
    path = folder / "m.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_manifest(path)


def test_only_the_path_is_required(folder: Path) -> None:
    assert read(folder, "path\nslides/a b.svs\nslides/ü.svs\nslides/dcm\n\n") == [
        ("a_b", SlideFile(folder / "slides/a b.svs")),
        ("s_", SlideFile(folder / "slides/ü.svs")),
        ("dcm", SlideFile(folder / "slides/dcm")),
    ]


@pytest.mark.parametrize(("text", "mpp"), [
    ("wsi,mpp\nslides/a b.svs,0.25\n", (0.25, 0.25)),  # TRIDENT, AtlasPatch
    ("sample_id,image_path,mask_path,spacing_at_level_0\na_b,slides/a b.svs,mask.png,0.25\n", (0.25, 0.25)),  # hs2p
    ("Path;MPP_X;mpp_y\nslides/a b.svs; 0.25 ;0.26\n", (0.25, 0.26)),
    ("slide\tmpp\tmpp_x\tmpp_y\nslides/a b.svs\t\t0.25\t0.26\n", (0.25, 0.26)),
    ("filename , mpp , note\n  slides/a b.svs , 0.25 , \"pale, thick\"\n", (0.25, 0.25)),
    ("slide_id,path,slide,mpp\na_b,slides/a b.svs,nonsense,\n", None),
    ("\ufeffpath,mpp\r\nslides/a b.svs,\r\n", None),
])  # fmt: skip
def test_tables_of_other_tools_are_understood(folder: Path, text: str, mpp: tuple[float, float] | None) -> None:
    mask = folder / "mask.png" if "mask" in text else None
    assert read(folder, text) == [("a_b", SlideFile(folder / "slides/a b.svs", mpp, mask))]


def test_paths_start_at_the_manifest_then_at_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mask.png", "here.svs"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    rows = f"path,mask\nhere.svs,mask.png\n{tmp_path / 'here.svs'},{tmp_path / 'mask.png'}\n"
    assert [file for _, file in read(folder, rows)] == [
        SlideFile(Path("here.svs"), None, folder / "mask.png"),
        SlideFile(tmp_path / "here.svs", None, tmp_path / "mask.png"),
    ]


def test_one_error_lists_every_problem_of_every_row(folder: Path) -> None:
    rows = (
        "path,mpp,mpp_x,mpp_y,mask",
        "none.svs,0,,,no.png",
        ",,,,mask.png",
        "slides/a b.svs,fast,,,",
        "slides/a b.svs,,0.5,,",
        "slides/a b.svs,0.5,0.5,0.5,",
        "slides/a b.svs,nan,,,",
        "/none.svs,,,,",
        'slides/a b.svs,"0,25",,,',
        "slides/a b.svs,0.5,,,",
    )
    with pytest.raises(ConfigError) as caught:
        read(folder, "\n".join(rows))
    where = f" (searched {folder.resolve()} and the current folder)"
    assert str(caught.value).split("; line ") == [
        f"{folder}/m.csv: line 2: no such file none.svs{where}, mpp 0 x 0 um/px is outside 0.05..20, "
        f"mask: no such file no.png{where}",
        "3: no path",
        "4: mpp 'fast' is not a number in um/px, e.g. 0.25",
        "5: only one of mpp_x and mpp_y is filled; fill both",
        "6: both mpp and mpp_x, mpp_y are filled; keep one of them",
        "7: mpp nan x nan um/px is outside 0.05..20",
        "8: no such file /none.svs",
        "9: mpp '0,25' is not a number in um/px, e.g. 0.25",
    ]


def test_a_row_with_too_many_cells_hides_no_problem_of_others(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 2: 2 cells, but the header has 1; .*; line 3: no such file none\.svs"):
        read(folder, "path\nslides/a b.svs,0.5\nnone.svs\n")


def test_of_many_problems_the_first_are_listed(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 21: no such file .*; \.\.\. and 10 more$"):
        read(folder, "path\n" + "none.svs\n" * 30)


@pytest.mark.parametrize(("text", "message"), [
    ("", "the manifest is empty; expected a header such as path,mpp"),
    ("id,mpp\na,0.5\n", r"no column path \(or image_path, wsi, slide, filename\); found id, mpp"),
    ("path,mpp\n", "the manifest lists no slide"),
    ("path,Path\nx,y\n", "column 'path' appears twice"),
    ("path,mpp\na,b.svs,0.5\n", "line 2: 3 cells, but the header has 2; quote cells that contain the separator"),
    ("path\nü.svs\n".encode("utf-16"), "not readable as UTF-8 text .*; save it as CSV UTF-8"),
])  # fmt: skip
def test_a_table_that_is_not_a_manifest_is_an_error(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"m\.csv: {message}"):
        read(folder, text)


ROW = st.tuples(
    st.text("abc.-_7", min_size=1).map(lambda name: "x" + name),
    st.none() | st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
    st.booleans(),
)


@given(st.lists(ROW, min_size=1, max_size=5), st.sampled_from(",;\t"), st.booleans(), st.permutations(range(5)))
def test_what_is_written_is_read_in_any_order_of_columns_and_with_any_separator(
    folder: Path, rows: Any, separator: Any, bom: bool, order: Any
) -> None:
    header = ("slide_id", "path", "mpp_x", "mpp_y", "mask")
    text = io.StringIO()
    table = csv.writer(text, delimiter=separator)
    table.writerow([header[i] for i in order])
    for slide_id, mpp, masked in rows:
        cells = [slide_id, "slides/ü.svs", *(mpp or ("", "")), "mask.png" if masked else ""]
        table.writerow([cells[i] for i in order])
    assert read(folder, ("\ufeff" if bom else "") + text.getvalue()) == [
        (slide_id, SlideFile(folder / "slides/ü.svs", mpp, folder / "mask.png" if masked else None))
        for slide_id, mpp, masked in rows
    ]
