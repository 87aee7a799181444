"""ASAP's XML: what is read, what is skipped, and every kind of error."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from wsipipe.annotations import asap
from wsipipe.annotations.asap import read_asap
from wsipipe.errors import SlideError

SQUARE = [(10, 20), (50, 20), (50, 60.5), (10, 60)]


def annotation(group: str, points: list[tuple[float, float]] = SQUARE, kind: str = "Polygon", name: str = "a") -> str:
    rows = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{rows}</Coordinates></Annotation>"
    )


def group(name: str, part_of: str = "None") -> str:
    return f'<Group Name="{name}" PartOfGroup="{part_of}" Color="#00ff00"><Attributes /></Group>'


def write(folder: Path, annotations: str, groups: str = "", head: str = '<?xml version="1.0"?>\n') -> Path:
    path = folder / "a.xml"
    body = f"<Annotations>{annotations}</Annotations><AnnotationGroups>{groups}</AnnotationGroups>"
    path.write_text(f"{head}<ASAP_Annotations>{body}</ASAP_Annotations>", "utf-8")
    return path


def test_areas_in_the_order_of_the_file_with_their_groups(tmp_path: Path) -> None:
    text = annotation("_2") + annotation("_0", kind="Spline") + annotation("None", kind="Rectangle") + annotation("x")
    regions = read_asap(write(tmp_path, text, group("_0", "tumour") + group("_2") + group("tumour", "all")))
    assert [(r.name, r.above) for r in regions] == [("_2", ()), ("_0", ("tumour", "all")), ("", ()), ("x", ())]
    assert all([tuple(p) for p in r.rings[0].tolist()] == SQUARE for r in regions)


def test_points_are_sorted_by_their_order_attribute(tmp_path: Path) -> None:
    path = write(tmp_path, annotation("t"))
    text = path.read_text()
    first, second = (f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(SQUARE[:2]))
    path.write_text(text.replace(first + second, second + first))
    assert path.read_text() != text
    assert [tuple(p) for p in read_asap(path)[0].rings[0].tolist()] == SQUARE


def test_a_cycle_of_groups_ends(tmp_path: Path) -> None:
    (region,) = read_asap(write(tmp_path, annotation("a"), group("a", "b") + group("b", "a")))
    assert region.above == ("b", "a")


def test_what_encloses_no_area_is_skipped_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        annotation("t", SQUARE[:1], "Dot") * 2
        + annotation("t", SQUARE, "PointSet")
        + annotation("t", SQUARE[:2])
        + annotation("t", [])
    )
    with caplog.at_level(logging.WARNING):
        assert read_asap(write(tmp_path, text)) == []
    assert caplog.messages == [
        f"{tmp_path}/a.xml: skipped 2 Dot, 1 PointSet, 2 Polygon of fewer than 3 points; "
        "only closed regions enclose an area"
    ]


def test_a_slide_without_annotations(tmp_path: Path) -> None:
    assert read_asap(write(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as XML .no element found"),
        ("<ASAP_Annotations><Annotations>", "not readable as XML"),
        ("<html></html>", "found <html>; expected <ASAP_Annotations>, the XML format of ASAP"),
        ('<?xml version="1.0" encoding="martian"?><ASAP_Annotations/>', "not readable as XML .unknown encoding"),
        (
            '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;">]><ASAP_Annotations>&c;</ASAP_Annotations>',
            "not readable as XML .DTDForbidden",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><ASAP_Annotations>&b;</ASAP_Annotations>',
            "not readable as XML .DTDForbidden",
        ),
    ],
)
def test_files_of_another_format_are_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(SlideError, match=message) as error:
        read_asap(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('X="10"', 'X="ten"', "annotation 'a': found a coordinate that is not a number"),
        ('X="10"', 'X="nan"', "found a coordinate that is not finite or beyond 10000000; expected level-0 px"),
        ('X="10"', 'X="1e9"', "found a coordinate that is not finite or beyond 10000000"),
        ('X="10"', "", "found a coordinate without X or Y"),
        ('Order="0"', 'Order="first"', "found a coordinate that is not a number"),
    ],
)
def test_bad_coordinates_are_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, annotation("t"))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SlideError, match=message):
        read_asap(path)


def test_files_that_are_missing_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SlideError, match=r"none\.xml: no such file"):
        read_asap(tmp_path / "none.xml")
    path = write(tmp_path, annotation("t"))
    monkeypatch.setattr(asap, "MAX_VERTICES", 3)
    with pytest.raises(SlideError, match="found more than 3 vertices; simplify"):
        read_asap(path)
    monkeypatch.setattr(asap, "MAX_BYTES", 50)
    with pytest.raises(SlideError, match="expected at most 50"):
        read_asap(path)
