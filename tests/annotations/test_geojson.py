"""QuPath's GeoJSON: every form of it, and every kind of error."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsipipe.annotations import geojson
from wsipipe.annotations.geojson import read_geojson
from wsipipe.errors import SlideError

SQUARE = [[10, 20], [50, 20], [50, 60], [10, 60], [10, 20]]
HOLE = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]


def feature(kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "0", "geometry": geometry, "properties": properties}


def write(folder: Path, root: Any) -> Path:
    path = folder / "a.geojson"
    path.write_text(root if isinstance(root, str) else json.dumps(root), "utf-8")
    return path


@pytest.mark.parametrize("form", ["collection", "array", "feature"])
def test_every_form_of_the_root(tmp_path: Path, form: str) -> None:
    one = feature("Polygon", [SQUARE, HOLE], classification={"name": "Tumor", "color": [200, 0, 0]})
    root = {"collection": {"type": "FeatureCollection", "features": [one]}, "array": [one], "feature": one}[form]
    (region,) = read_geojson(write(tmp_path, root))
    assert region.name == "Tumor"
    assert [r.tolist() for r in region.rings] == [SQUARE, HOLE]
    assert all(r.dtype == np.float64 for r in region.rings)


@pytest.mark.parametrize(
    ("classification", "name", "above"),
    [
        ("Stroma", "Stroma", ()),
        ({"name": "A: B: C"}, "A: B: C", ("A: B", "A")),
        ({"names": ["A", "B"], "color": [0, 0, 0]}, "A: B", ("A",)),
        (None, "", ()),
        ({"colorRGB": -1}, "", ()),
    ],
)
def test_every_form_of_a_classification(tmp_path: Path, classification: Any, name: str, above: tuple[str, ...]) -> None:
    (region,) = read_geojson(write(tmp_path, feature("Polygon", [SQUARE], classification=classification)))
    assert (region.name, region.above) == (name, above)


def test_a_file_without_polygons_can_be_accepted(tmp_path: Path) -> None:
    assert read_geojson(write(tmp_path, {"type": "FeatureCollection", "features": []}), may_be_empty=True) == []


def test_several_polygons_and_the_origin_of_the_frame(tmp_path: Path) -> None:
    path = write(tmp_path, [feature("MultiPolygon", [[SQUARE], [HOLE]]), feature("Polygon", [SQUARE])])
    regions = read_geojson(path, (1000, 2000))
    assert [r.rings[0][0].tolist() for r in regions] == [[1010, 2020], [1020, 2030], [1010, 2020]]


def test_lines_and_points_are_skipped_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = [feature("LineString", SQUARE), feature("Point", [1, 2]), feature("Point", [3, 4])]
    with caplog.at_level(logging.WARNING):
        assert len(read_geojson(write(tmp_path, [*other, feature("Polygon", [SQUARE])]))) == 1
    assert "skipped 1 LineString, 2 Point; only polygons enclose an area" in caplog.text


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ([], "found no features; expected Polygon"),
        ([feature("Point", [1, 2])], "found 1 Point; expected Polygon"),
        ([{"type": "Feature", "geometry": None}], "found 1 feature without geometry"),
        ({"type": "Polygon", "coordinates": [SQUARE]}, "found type 'Polygon' without features"),
        ({"type": "FeatureCollection"}, "found type .* without features"),
        ([1, 2], "found list without features"),
        ("7", "found int without features"),
        ("", "not readable as JSON"),
        ('{"type": "Feature"', "not readable as JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[1" + "0" * 5000 + "]", "not readable as JSON"),
        ([feature("Polygon", [[[0, 0], [1, 1]]])], "expected a ring of at least 3 positions"),
        ([feature("Polygon", [[[0, 0], [1, 1], [2]]])], "expected a ring of at least 3 positions"),
        ([feature("Polygon", [[["0", "0"], ["1", "1"], ["0", "2"]]])], "expected a ring of at least 3 positions"),
        ([feature("Polygon", [[[0, 0], [1, None], [0, 2]]])], "expected a ring of at least 3 positions"),
        ([feature("Polygon", [[[0, 0], [10**400, 1], [0, 2]]])], "expected a ring of at least 3 positions"),
        ([feature("Polygon", [SQUARE[0]])], "expected a ring of at least 3 positions"),
        ([feature("Polygon", [])], "polygon without rings"),
        ([feature("MultiPolygon", None)], "MultiPolygon without coordinates"),
        ([feature("Polygon", [[[0, 0], [1, math.nan], [0, 2]]])], "not finite or beyond"),
        ([feature("Polygon", [[[0, 0], [math.inf, 1], [0, 2]]])], "not finite or beyond"),
        ([feature("Polygon", [[[0, 0], [1e300, 1], [0, 2]]])], "not finite or beyond"),
    ],
)
def test_every_fault_is_an_error_that_names_it(tmp_path: Path, root: Any, message: str) -> None:
    with pytest.raises(SlideError, match=message) as error:
        read_geojson(write(tmp_path, root))
    assert "a.geojson" in str(error.value)


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        read_geojson(tmp_path / "none.geojson")
    (tmp_path / "b.geojson").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SlideError, match="not readable as JSON"):
        read_geojson(tmp_path / "b.geojson")


def test_large_files_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, [feature("Polygon", [SQUARE, HOLE])])
    monkeypatch.setattr(geojson, "MAX_VERTICES", 9)
    with pytest.raises(SlideError, match="more than 9 vertices"):
        read_geojson(path)
    monkeypatch.setattr(geojson, "MAX_BYTES", 50)
    with pytest.raises(SlideError, match=r"found \d+ bytes; expected at most 50"):
        read_geojson(path)
