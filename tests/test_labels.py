"""labels.csv: what is accepted, and every contradiction is listed at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.errors import ConfigError, LabelsError, WsipipeError
from wsipipe.labels import IGNORE, Classes, LabelTable, match_stores, read_labels, slide_id_of

GOOD = "slide_id,label\na,tumour\nb,\n"


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """Write a text (or bytes) as labels.csv and read it."""

    def read(text: str | bytes, classes: list[str] | None = None) -> LabelTable:
        path = tmp_path / "labels.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_labels(path, classes)

    return read


def presence(labels: LabelTable) -> dict[str, tuple[int, ...]]:
    return {r.slide_id: r.present for r in labels.rows}


def test_a_plain_file(table: Any) -> None:
    labels = table(GOOD)
    assert labels.classes.names == ("tumour",)
    assert presence(labels) == {"a": (1,), "b": (0,)}
    assert [(r.line, r.box_px0, r.patient_id, r.split) for r in labels.rows] == [
        (2, None, "", "train"),
        (3, None, "", "train"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        "slide_id;label\na;tumour\nb;\n",
        "slide_id\tlabel\na\ttumour\nb\t\n",
        " slide_id , label \n  a ,  tumour \n b , \n",
        "slide,label\na,tumour\nb,\n",
        "Slide_ID,Label\na,tumour\nb,\n",
        "slide_id,label\r\na,tumour\r\nb,\r\n",
        '"slide_id","label"\n"a","tumour"\n"b",""\n',
        "\n\nslide_id,label\n\na,tumour\n,\nb\n\n",
        "slide_id,label,,\na,tumour,,\nb,,,\n",
        "slide_id,tumour,\na,1,\nb,0,\n",
        "slide_id,tumour\na,1.0\nb,\n",
        "slide_id,label,remark\na,tumour,nice\nb,,\n",
    ],
    ids=[
        "BOM", "semicolons", "tabs", "spaces", "slide header", "capitals", "CRLF", "quotes", "blank lines",
        "empty columns", "one-hot with empty column", "one-hot as float", "other column",
    ],
)  # fmt: skip
def test_spellings_that_mean_the_same(table: Any, text: str) -> None:
    labels = table(text)
    assert labels.classes.names == ("tumour",)
    assert presence(labels) == {"a": (1,), "b": (0,)}


@pytest.mark.parametrize("joined", ["x;y", "x|y", " x ; y ", "y;x;"])
def test_several_classes_in_one_cell(table: Any, joined: str) -> None:
    assert presence(table(f"slide_id,label\na,{joined}\nb,x\n")) == {"a": (1, 1), "b": (1, 0)}


def test_a_joined_label_is_quoted_where_the_separator_is_a_semicolon(table: Any) -> None:
    assert presence(table('slide_id;label\na;"x;y"\nb;x\n')) == {"a": (1, 1), "b": (1, 0)}


def test_an_unquoted_separator_in_a_label_is_an_error_not_a_lost_class(table: Any) -> None:
    with pytest.raises(LabelsError, match=r"line 2: 3 cells, but the header has 2; quote cells"):
        table("slide_id;label\na;x;y\nb;x\n")


def test_declared_classes_keep_their_order(table: Any) -> None:
    labels = table("slide_id,label\na,x\nb,z\n", ["z", "y", "x"])
    assert labels.classes.names == ("z", "y", "x")
    assert presence(labels) == {"a": (0, 0, 1), "b": (1, 0, 0)}


def test_one_column_per_class(table: Any) -> None:
    labels = table("slide_id,patient_id,x1,y1\na,p,1,0\nb,q,0,1\nc,r,0,\n")
    assert labels.classes.names == ("x1", "y1")
    assert presence(labels) == {"a": (1, 0), "b": (0, 1), "c": (0, 0)}


def test_regions_patients_and_splits(table: Any) -> None:
    labels = table(
        "slide_id,label,x,y,width,height,patient_id,split\n"
        "a,t,0,10,100.5,200,p1,train\na,,300,10,100,200,p1,Train\nb,t,,,,,p2,test\nc,,,,,,p3,val\n"
    )
    assert labels.rows[0].box_px0 == (0, 10, 100.5, 200)
    assert labels.rows[2].box_px0 is None
    assert [r.split for r in labels.rows] == ["train", "train", "test", "val"]
    assert [r.slide_id for r in labels.of_split("test")] == ["b"]


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("slide_id,label\na,x\nb,q\n", ["x"], "line 3: unknown class q; the classes are x"),
        ("slide_id,x1,q\na,1,0\nb,0,1\n", ["x1"], "line 3: unknown class q; the classes are x1"),
        ("name,label\na,x\n", None, "no column slide_id; found name, label"),
        ("slide_id,split\na,train\n", None, "no column label and no 0/1 column per class"),
        ("slide_id,label,label\na,x,y\n", None, "column 'label' appears twice"),
        (
            "slide_id,label,x,y\na,t,0,0\nb,,0,0\n",
            None,
            "a region needs all columns x, y, width, height (level-0 px)",
        ),
        ("slide_id,label\na,x\nb,\na,\n", None, "lines 2 and 4: slide a has two rows"),
        (
            "slide_id,label,x,y,width,height\na,t,0,0,9,9\na,,0,0,9,9\n",
            None,
            "lines 2 and 3: region a has two rows",
        ),
        (
            "slide_id,label,patient_id,split\na,x,p,train\nb,,q,train\nc,,p,test\n",
            None,
            "patient p is in the splits test and train; keep it in one",
        ),
        (
            "slide_id,label,x,y,width,height,split\na,t,0,0,9,9,train\na,,9,0,9,9,val\nb,,0,0,9,9,train\n",
            None,
            "slide a is in the splits train and val; keep it in one",
        ),
        (
            "slide_id,label,split\na,x,train\nb,,training\nc,,train\n",
            None,
            "line 3: split 'training': expected one of train, val, test",
        ),
        (
            "slide_id,label,x,y,width,height\na,t,0,0,9,9\nb,,0,0,-9,9\n",
            None,
            "line 3: x,y,width,height = 0,0,-9,9: expected a box of positive size",
        ),
        ("slide_id,label,x,y,width,height\na,t,0,0,9,9\nb,,0,0,inf,9\n", None, "expected a box of positive size"),
        ("slide_id,label,x,y,width,height\na,t,0,0,9,9\nb,,0,0,nan,9\n", None, "expected a box of positive size"),
        (
            "slide_id,label,x,y,width,height\na,t,0,0,9,9\nb,,0,0,,9\n",
            None,
            "line 3: x,y,width,height = 0,0,,9: expected four numbers in level-0 px",
        ),
        ("slide_id,label,x,y,width,height\na,t,0,0,9,9\nb,,zero,0,9,9\n", None, "expected four numbers in level-0 px"),
        ("slide_id,label\na,x\nb,x\n", None, "all 2 training rows have the same label; at least one positive"),
        ("slide_id,label,split\na,x,train\nb,x,train\nc,,test\n", None, "all 2 training rows have the same label"),
        ("slide_id,label\na,\nb,\n", None, "no row has a class; at least one positive label is required"),
        ("slide_id,label,split\na,x,test\nb,,val\n", None, "no row has split train; training needs some"),
        ("slide_id,x1\na,yes\nb,0\n", None, "line 2: x1 = 'yes': expected 0 or 1"),
        ("slide_id,label\n,x\nb,\n", None, "line 2: slide_id is empty"),
        ("", None, "the file is empty; expected a header such as slide_id,label"),
        ("\ufeff \n\n", None, "the file is empty"),
    ],
)
def test_each_problem_is_named(table: Any, text: str, classes: list[str] | None, message: str) -> None:
    with pytest.raises(LabelsError) as caught:
        table(text, classes)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(caught.value).split("labels.csv")[0] + "labels.csv: ")
    assert caught.value.exit_code == 2


def test_all_problems_are_listed_at_once(table: Any) -> None:
    with pytest.raises(LabelsError) as caught:
        table(
            "slide_id,label,patient_id,split,x,y,width,height\n"
            "a,x,p,train,,,,\n"
            "a,x,p,train,,,,\n"
            "b,q,r,train,,,,\n"
            "c,x,p,test,,,,\n"
            "d,x,s,tra1n,,,,\n"
            "e,x,t,train,1,2,0,4\n",
            ["x"],
        )
    found = "\n".join(caught.value.problems)
    for part in (
        "lines 2 and 3: slide a has two rows",
        "line 4: unknown class q",
        "patient p is in the splits test and train",
        "line 6: split 'tra1n'",
        "line 7: x,y,width,height",
        "training rows have the same label",
    ):
        assert part in found
    assert len(caught.value.problems) == 6


def test_a_long_list_of_problems_is_cut_in_the_message_only() -> None:
    error = LabelsError("labels.csv", [f"line {i}: wrong" for i in range(30)])
    assert str(error).endswith("line 19: wrong; ... and 10 more")
    assert len(error.problems) == 30
    assert isinstance(error, ConfigError)
    assert isinstance(error, WsipipeError)


def test_a_missing_file_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"no such file; set it with --labels"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(LabelsError, match="not UTF-8 text"):
        read_labels(tmp_path)


def test_another_encoding_says_what_to_save_as(table: Any) -> None:
    with pytest.raises(LabelsError, match="save it as CSV UTF-8"):
        table(GOOD.encode("utf-16"))


def test_a_slide_may_be_called_s(table: Any) -> None:
    assert presence(table("slide_id,label\ns,x\nb,\n")) == {"s": (1,), "b": (0,)}


def test_a_row_without_a_store_is_an_error_and_a_store_without_a_row_is_listed(table: Any) -> None:
    labels = table(GOOD)
    matched, unlabelled = match_stores(labels, ["a", "b", "c", "d"])
    assert matched == labels
    assert unlabelled == ["c", "d"]
    with pytest.raises(LabelsError) as caught:
        match_stores(labels, ["c"])
    assert [p.split(";")[0] for p in caught.value.problems] == [
        "line 2: no store for slide a",
        "line 3: no store for slide b",
    ]
    assert "tile the slide or remove the row" in str(caught.value)


def test_a_file_suffix_is_matched_with_its_store(table: Any) -> None:
    matched, unlabelled = match_stores(table("slide_id,label\na.svs,x\nb.ome.tiff,\nc.1,x\n"), ["a", "b.ome", "c.1"])
    assert [r.slide_id for r in matched.rows] == ["a", "b.ome", "c.1"]
    assert unlabelled == []


def test_two_spellings_of_one_slide_are_two_rows_of_it(table: Any) -> None:
    labels = table("slide_id,label\na.svs,x\nb,\na,\n")
    with pytest.raises(LabelsError, match="lines 2 and 4: slide a has two rows"):
        match_stores(labels, ["a", "b"])


def test_slide_ids_are_safe_file_names_and_match_however_they_are_written() -> None:
    assert slide_id_of(" TCGA-A1.B2_x ") == "TCGA-A1.B2_x"
    assert slide_id_of("test3-DAPI-2-(387)") == "test3-DAPI-2-_387_"
    assert slide_id_of("../up") == "s.._up"
    assert slide_id_of("é") == "s_"


@given(st.text(min_size=1, max_size=30))
def test_slide_id_is_always_safe_and_stable(name: str) -> None:
    safe = slide_id_of(name)
    assert slide_id_of(safe) == safe
    assert safe.isascii()
    assert safe[0].isalnum()
    assert not set(safe) & set("/\\: \n*?")


def test_classes_number_masks_from_one() -> None:
    classes = Classes(("x", "y", "z"))
    assert len(classes) == 3
    assert classes.multi_hot(["z", "x"]) == (1, 0, 1)
    assert classes.mask_values() == {0: "none", 1: "x", 2: "y", 3: "z", IGNORE: "ignore"}
    assert classes.mask_values("not predicted")[IGNORE] == "not predicted"
    assert IGNORE == 255
    with pytest.raises(ValueError, match="255 classes; a uint8 mask has room for 254 beside 0 and 255"):
        Classes(tuple(map(str, range(255))))
    assert len(Classes(tuple(map(str, range(254))))) == 254


def test_labels_that_are_not_for_fitting_may_all_be_alike(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,label,split\na,tumour,test\nb,tumour,test\n")
    with pytest.raises(LabelsError, match="no row has split train"):
        read_labels(path)
    assert [r.present for r in read_labels(path, to_fit=False).rows] == [(1,), (1,)]
    path.write_text("slide_id,label\na,\n")
    assert read_labels(path, to_fit=False).classes.names == ()
    path.write_text("slide_id,label,split,patient_id\na,,test,p\nb,,train,p\n")
    with pytest.raises(LabelsError, match="patient p is in the splits test and train"):
        read_labels(path, to_fit=False)
