"""Every file format gives the same mask; paint order, names, groups and frames of annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from wsipipe.annotations.mask_image import ValueMap
from wsipipe.annotations.open import SUFFIXES, open_truth
from wsipipe.errors import ConfigError, SlideError
from wsipipe.geometry import Grid, Window

CLASSES = ("stroma", "tumour")
GRID = Grid((24, 16), (0.5, 0.5), (2.0, 2.0), 16, 16)
ALL = Window(0, 0, 12, 8)

Box = tuple[int, int, int, int]


def corners(box: Box) -> list[list[int]]:
    x, y, w, h = box
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]


def geojson(path: Path, *objects: tuple[str | None, list[Box]]) -> Path:
    features: list[dict[str, Any]] = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*corners(b), corners(b)[0]] for b in boxes]},
            "properties": {"classification": {"name": name}} if name else {},
        }
        for name, boxes in objects
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def asap(path: Path, *objects: tuple[str, Box], groups: dict[str, str] | None = None) -> Path:
    annotations = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{name}"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners(box)))
        + "</Coordinates></Annotation>"
        for name, box in objects
    )
    listed = "".join(f'<Group Name="{n}" PartOfGroup="{of}"/>' for n, of in (groups or {}).items())
    path.write_text(
        f"<ASAP_Annotations><Annotations>{annotations}</Annotations>"
        f"<AnnotationGroups>{listed}</AnnotationGroups></ASAP_Annotations>"
    )
    return path


def read(path: Path, text: str = "", grid: Grid = GRID, window: Window = ALL) -> np.ndarray:
    return open_truth(path, grid, ValueMap.parse(text, CLASSES))(window)


BIG, INNER = (4, 2, 16, 12), (8, 6, 6, 4)


def expected(big: int, inner: int, background: int = 0) -> np.ndarray:
    """BIG and INNER in working px."""
    out = np.full((8, 12), background, np.uint8)
    out[1:7, 2:10] = big
    out[3:5, 4:7] = inner
    return out


def test_every_format_gives_the_same_mask(tmp_path: Path) -> None:
    mask = np.repeat(np.repeat(expected(2, 0), 2, 0), 2, 1)
    (tmp_path / "m.png").write_bytes(imagecodecs.png_encode(mask))
    tifffile.imwrite(tmp_path / "m.tif", mask, tile=(16, 16), compression="zlib")
    forms = [
        (tmp_path / "m.png", ""),
        (tmp_path / "m.tif", "0=0,2=tumour"),
        (geojson(tmp_path / "hole.geojson", ("tumour", [BIG, INNER])), ""),
        (geojson(tmp_path / "cover.json", ("Tumor", [BIG]), ("Normal", [INNER])), "Normal=0,Tumor=tumour"),
        (asap(tmp_path / "m.xml", ("_2", INNER), ("_0", BIG)), "_0=tumour,_1=tumour,_2=0"),
    ]
    for path, text in forms:
        np.testing.assert_array_equal(read(path, text), expected(2, 0), err_msg=path.name)
        part = Window(3, 2, 5, 4)
        np.testing.assert_array_equal(read(path, text, window=part), expected(2, 0)[2:6, 3:8], err_msg=path.name)


def test_a_file_with_another_suffix_is_read_as_a_mask_image(tmp_path: Path) -> None:
    assert SUFFIXES == (".png", ".tif", ".tiff", ".geojson", ".json", ".xml")
    path = tmp_path / "m.mask"
    path.write_bytes(imagecodecs.png_encode(np.repeat(np.repeat(expected(2, 0), 2, 0), 2, 1)))
    np.testing.assert_array_equal(read(path), expected(2, 0))


def test_groups_of_asap_are_painted_in_the_order_of_the_map(tmp_path: Path) -> None:
    path = asap(tmp_path / "m.xml", ("nest", INNER), ("tissue", BIG), ("nest", INNER))
    np.testing.assert_array_equal(read(path, "tissue=stroma,nest=tumour"), expected(1, 2))
    np.testing.assert_array_equal(read(path, "nest=tumour,tissue=stroma"), expected(1, 1))


def test_objects_of_qupath_are_painted_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = geojson(tmp_path / "m.json", ("nest", [INNER]), ("tissue", [BIG]))
    np.testing.assert_array_equal(read(path, "tissue=stroma,nest=tumour"), expected(1, 1))


def test_a_group_takes_the_meaning_of_the_group_above_it(tmp_path: Path) -> None:
    path = asap(tmp_path / "m.xml", ("a", BIG), ("b", INNER), groups={"a": "tumour", "b": "a", "tumour": "None"})
    np.testing.assert_array_equal(read(path), expected(2, 2))
    np.testing.assert_array_equal(read(path, "tumour=tumour,b=stroma"), expected(2, 1))
    path = geojson(tmp_path / "m.json", ("Tumor: Positive", [BIG]))
    np.testing.assert_array_equal(read(path, "Tumor=tumour"), expected(2, 2))


def test_outside_and_unclassified_can_be_mapped(tmp_path: Path) -> None:
    path = geojson(tmp_path / "m.json", (None, [BIG]), ("x", [INNER]))
    np.testing.assert_array_equal(read(path, "unclassified=1,x=2,outside=ignore"), expected(1, 2, 255))


def test_without_a_map_names_are_classes_or_words(tmp_path: Path) -> None:
    path = geojson(tmp_path / "m.json", ("stroma", [BIG]), ("ignore", [INNER]))
    np.testing.assert_array_equal(read(path), expected(1, 255))


def test_qupath_coordinates_start_at_the_bounds_and_those_of_asap_at_the_slide(tmp_path: Path) -> None:
    grid = Grid((24, 16), (0.5, 0.5), (2.0, 2.0), 16, 16, (100, 50))
    x, y, w, h = BIG
    of_qupath = geojson(tmp_path / "m.json", ("tumour", [BIG]))
    of_asap = asap(tmp_path / "m.xml", ("tumour", (x + 100, y + 50, w, h)))
    for path in (of_qupath, of_asap):
        np.testing.assert_array_equal(read(path, grid=grid), expected(2, 2))


def test_files_without_annotations_hold_no_class(tmp_path: Path) -> None:
    for path in (geojson(tmp_path / "m.json"), asap(tmp_path / "m.xml")):
        assert not read(path).any()


@pytest.mark.parametrize("name", ["m.json", "m.xml"])
def test_names_without_a_meaning_are_listed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "m.json":
        geojson(path, ("Tumor", [BIG]), (None, [INNER]))
    else:
        asap(path, ("Tumor", BIG), ("None", INNER))
    with pytest.raises(
        ConfigError,
        match=r"holds annotations called Tumor, unclassified that have no meaning \(known: T=2\); "
        "map every name to a class: give --truth-map, e.g. Tumor=0,unclassified=0",
    ):
        read(path, "T=tumour")


def test_a_damaged_file_is_a_slide_error(tmp_path: Path) -> None:
    for name in ("m.xml", "m.json", "m.png", "m.tif"):
        (tmp_path / name).write_text("nonsense")
        with pytest.raises(SlideError, match=name):
            read(tmp_path / name)


def test_qupath_coordinates_start_at_the_scanner_bounds_not_at_the_frame(tmp_path: Path) -> None:
    """The frame may start a few level-0 px before the bounds, where every level has a pixel corner."""
    grid = Grid((64, 64), (0.5, 0.5), (1.0, 1.0), 16, 16, (96, 32))
    ring = [[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": CLASSES[0]}},
    }
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    value_map = ValueMap.parse("", CLASSES)
    for corner, (x, y) in {(100, 37): (4, 5), None: (0, 0)}.items():
        mask = open_truth(path, grid, value_map, corner)(Window(0, 0, 64, 64))
        expected = np.zeros((64, 64), np.uint8)
        expected[y : y + 8, x : x + 8] = 1
        np.testing.assert_array_equal(mask, expected)
