"""QuPath's GeoJSON: every form it comes in, every way to be wrong, and pixels against a slow even-odd count."""

from __future__ import annotations

import json
import logging
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides import geojson
from wsipipe.slides.geojson import Region, rasterise, read_regions

SQUARE = [[10, 20], [50, 20], [50, 60], [10, 60], [10, 20]]
HOLE = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]


def feature(kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "0", "geometry": geometry, "properties": properties}


def write(folder: Path, root: Any) -> Path:
    path = folder / "a.geojson"
    path.write_text(root if isinstance(root, str) else json.dumps(root), "utf-8")
    return path


def inside(rings: list[list[tuple[Fraction, Fraction]]], x: Fraction, y: Fraction) -> bool:
    """Even-odd in exact arithmetic: edges crossed on the way from (x, y) to the left, edges through it counted."""
    odd = False
    for ring in rings:
        for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True):
            if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) <= x:
                odd = not odd
    return odd


def slow(regions: list[Region], shape: tuple[int, int], step: tuple[float, float], origin: tuple[int, int]) -> NDArray:
    out = np.zeros(shape, bool)
    exact = [[[(Fraction(x), Fraction(y)) for x, y in ring.tolist()] for ring in r.rings] for r in regions]
    for row in range(shape[0]):
        for col in range(shape[1]):
            x, y = (
                Fraction(o) + Fraction(s) * Fraction(2 * n + 1, 2)
                for o, s, n in zip(origin, step, (col, row), strict=True)
            )
            out[row, col] = any(inside(rings, x, y) for rings in exact)
    return out


# eighths of a pixel are exact in floating point, and often on a pixel's centre
points = st.lists(st.tuples(st.integers(-60, 260), st.integers(-60, 260)), min_size=3, max_size=7)


@given(
    st.lists(st.lists(points, min_size=1, max_size=3), min_size=1, max_size=3),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(1.0, 1.0), (2.0, 4.0), (0.5, 8.0)]),
    st.tuples(st.integers(-5, 5), st.integers(-5, 5)),
)
def test_pixels_whose_centre_is_inside(
    rings: list[list[list[tuple[int, int]]]],
    shape: tuple[int, int],
    step: tuple[float, float],
    origin: tuple[int, int],
) -> None:
    regions = [Region(tuple(np.array(ring, float) / 8 for ring in polygon)) for polygon in rings]
    found = rasterise(regions, shape, step, origin)
    assert found.dtype == np.bool_
    # edges that lean meet centres at fractions that are not exact: there the nearest pixel may differ
    expected = slow(regions, shape, step, origin)
    wrong = np.argwhere(found != expected)
    for row, col in wrong:
        centre = (origin[0] + step[0] * (col + 0.5), origin[1] + step[1] * (row + 0.5))
        assert min(distance(ring, centre) for r in regions for ring in r.rings) < 1e-9


def distance(ring: NDArray[np.float64], at: tuple[float, float]) -> float:
    """From a point to the nearest edge."""
    best = math.inf
    for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        d = b - a
        t = np.clip(np.dot(np.array(at) - a, d) / max(np.dot(d, d), 1e-300), 0, 1)
        best = min(best, float(np.hypot(*(a + t * d - at))))
    return best


def test_a_hole_is_empty_and_polygons_add_up() -> None:
    square, hole = (np.array(r, float) for r in (SQUARE, HOLE))
    found = rasterise([Region((square, hole)), Region((hole + 5,))], (8, 8), (10, 10))
    assert found.astype(int).tolist() == [
        [0] * 8,
        [0] * 8,
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],  # (25, 35) lies in the hole and, at its corner, in the second polygon
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0] * 8,
        [0] * 8,
    ]
    assert not rasterise([Region((square, hole))], (8, 8), (10, 10))[3, 2]


def test_rasterising_many_vertices_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    angle = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    radius = 300 + 40 * np.sin(9 * angle)
    star = Region((np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + 400,))
    whole = rasterise([star], (100, 100), (8, 8))
    monkeypatch.setattr(geojson, "_CROSSINGS", 300)
    np.testing.assert_array_equal(rasterise([star], (100, 100), (8, 8)), whole)
    area = 0.5 * np.mean(radius**2) * 2 * np.pi / 64
    assert whole.sum() == pytest.approx(area, rel=0.01)


def test_far_polygons_cost_no_memory() -> None:
    far = np.array(SQUARE, float) * 1e5
    assert not rasterise([Region((far,))], (4, 4), (1, 1)).any()
    assert rasterise([Region((far - 2e6,))], (4, 4), (1, 1)).all()


@pytest.mark.parametrize("form", ["collection", "array", "feature"])
def test_every_form_of_the_root(tmp_path: Path, form: str) -> None:
    one = feature("Polygon", [SQUARE, HOLE], classification={"name": "Tumor", "color": [200, 0, 0]})
    root = {"collection": {"type": "FeatureCollection", "features": [one]}, "array": [one], "feature": one}[form]
    (region,) = read_regions(write(tmp_path, root))
    assert region.name == "Tumor"
    assert [r.tolist() for r in region.rings] == [SQUARE, HOLE]
    assert all(r.dtype == np.float64 for r in region.rings)


@pytest.mark.parametrize(
    ("classification", "name"),
    [("Stroma", "Stroma"), ({"names": ["A", "B"], "color": [0, 0, 0]}, "A: B"), (None, ""), ({"colorRGB": -1}, "")],
)
def test_every_form_of_a_classification(tmp_path: Path, classification: Any, name: str) -> None:
    (region,) = read_regions(write(tmp_path, feature("Polygon", [SQUARE], classification=classification)))
    assert region.name == name


def test_several_polygons_and_the_origin_of_the_frame(tmp_path: Path) -> None:
    path = write(tmp_path, [feature("MultiPolygon", [[SQUARE], [HOLE]]), feature("Polygon", [SQUARE])])
    regions = read_regions(path, (1000, 2000))
    assert [r.rings[0][0].tolist() for r in regions] == [[1010, 2020], [1020, 2030], [1010, 2020]]


def test_lines_and_points_are_left_out_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = [feature("LineString", SQUARE), feature("Point", [1, 2]), feature("Point", [3, 4])]
    with caplog.at_level(logging.WARNING):
        assert len(read_regions(write(tmp_path, [*other, feature("Polygon", [SQUARE])]))) == 1
    assert "left out 1 LineString, 2 Point; only polygons enclose an area" in caplog.text


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ([], "found no features; expected Polygon"),
        ([feature("Point", [1, 2])], "found 1 Point; expected Polygon"),
        ([{"type": "Feature", "geometry": None}], "found 1 feature without geometry"),
        ({"type": "Polygon", "coordinates": [SQUARE]}, "found type 'Polygon' that is not made of features"),
        ({"type": "FeatureCollection"}, "not made of features"),
        ([1, 2], "found list that is not made of features"),
        ("7", "found int that is not made of features"),
        ("", "not readable as JSON"),
        ('{"type": "Feature"', "not readable as JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[1" + "0" * 5000 + "]", "not readable as JSON"),
        ([feature("Polygon", [[[0, 0], [1, 1]]])], "not a list of at least 3 positions"),
        ([feature("Polygon", [[[0, 0], [1, 1], [2]]])], "not a list of at least 3 positions"),
        ([feature("Polygon", [[["0", "0"], ["1", "1"], ["0", "2"]]])], "not a list of at least 3 positions"),
        ([feature("Polygon", [[[0, 0], [1, None], [0, 2]]])], "not a list of at least 3 positions"),
        ([feature("Polygon", [[[0, 0], [10**400, 1], [0, 2]]])], "not a list of at least 3 positions"),
        ([feature("Polygon", [SQUARE[0]])], "not a list of at least 3 positions"),
        ([feature("Polygon", [])], "polygon without rings"),
        ([feature("MultiPolygon", None)], "MultiPolygon without coordinates"),
        ([feature("Polygon", [[[0, 0], [1, math.nan], [0, 2]]])], "not finite or beyond"),
        ([feature("Polygon", [[[0, 0], [math.inf, 1], [0, 2]]])], "not finite or beyond"),
        ([feature("Polygon", [[[0, 0], [1e300, 1], [0, 2]]])], "not finite or beyond"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, root: Any, message: str) -> None:
    with pytest.raises(SlideError, match=message) as error:
        read_regions(write(tmp_path, root))
    assert "a.geojson" in str(error.value)


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        read_regions(tmp_path / "none.geojson")
    (tmp_path / "b.geojson").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SlideError, match="not readable as JSON"):
        read_regions(tmp_path / "b.geojson")


def test_large_files_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, [feature("Polygon", [SQUARE, HOLE])])
    monkeypatch.setattr(geojson, "MOST_VERTICES", 9)
    with pytest.raises(SlideError, match="more than 9 vertices"):
        read_regions(path)
    monkeypatch.setattr(geojson, "MOST_BYTES", 50)
    with pytest.raises(SlideError, match=r"found \d+ bytes; expected at most 50"):
        read_regions(path)
