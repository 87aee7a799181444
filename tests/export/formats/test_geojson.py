"""GeoJSON of a mask: the fields that QuPath reads, pixel-exact through our reader and back, and the check of a file."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.examples import examples
from support.masked import NAMES, Mask, mask_store, pieces_of, pixels_of, write_mask

from wsipipe.annotations.geojson import read_geojson
from wsipipe.annotations.mask_image import ValueMap
from wsipipe.annotations.open import open_truth
from wsipipe.errors import ConfigError, StoreError
from wsipipe.export.formats import geojson
from wsipipe.export.formats.geojson import GeoJsonOptions, verify_geojson, write_geojson
from wsipipe.export.rings import area
from wsipipe.geometry import Window
from wsipipe.store import SlideStore
from wsipipe.store.layout import COLOURS

TUMOUR = "[[7,6],[11,6],[11,8],[7,8],[7,6]]"

MEANING = ValueMap.identity(("stroma", "tumour", "fat"))


def blocks() -> Mask:
    """24 x 20 px: stroma round a hole with tumour in it, fat alone, ignore beside it."""
    mask = np.zeros((20, 24), np.uint8)
    mask[2:12, 3:15], mask[4:10, 5:13], mask[6:8, 7:11] = 1, 0, 2
    mask[15:18, 20:24], mask[15:18, 15:20] = 3, 255
    return mask


def drawn(mask: Mask) -> Mask:
    """What of a mask is exported."""
    return np.where(mask == 255, 0, mask).astype(np.uint8)


def noise(shape: tuple[int, int], seed: int = 0) -> Mask:
    return np.random.default_rng(seed).choice(np.array(list(NAMES), np.uint8), shape)


def load(path: Path) -> dict[str, Any]:
    root = json.loads(path.read_text("ascii"))
    assert isinstance(root, dict)
    return root


def read_back(path: Path, store: SlideStore) -> Mask:
    """Through the reader of annotations, as `masks import` does."""
    return open_truth(path, store.grid, MEANING)(Window(0, 0, *store.grid.size_px))


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    return mask_store(tmp_path / "slide.zarr", {"net": blocks()})


def test_what_qupath_reads(store: SlideStore, tmp_path: Path) -> None:
    path = write_geojson(store, "net", tmp_path / "out" / "slide.geojson")
    assert path == tmp_path / "out" / "slide.geojson"
    assert [p.name for p in path.parent.iterdir()] == ["slide.geojson"]
    root = load(path)
    assert root["type"] == "FeatureCollection"
    features = {f["properties"]["classification"]["name"]: f for f in root["features"]}
    assert list(features) == ["stroma", "tumour", "fat"]
    for feature in features.values():
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        assert set(feature["properties"]) == {"objectType", "classification", "isLocked", "measurements"}
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["isLocked"] is False
    stroma = features["stroma"]
    assert stroma["properties"]["classification"]["color"] == list(COLOURS[0])
    assert features["fat"]["properties"]["classification"]["color"] == list(COLOURS[2])
    assert stroma["properties"]["measurements"] == {"Area µm^2": 72 * 0.25}
    assert stroma["geometry"] == {
        "type": "Polygon",
        "coordinates": [
            [[3, 2], [15, 2], [15, 12], [3, 12], [3, 2]],
            [[5, 4], [5, 10], [13, 10], [13, 4], [5, 4]],
        ],
    }
    assert [r.name for r in read_geojson(path)] == ["stroma", "tumour", "fat"]


def test_orientation_is_that_of_rfc_7946(tmp_path: Path) -> None:
    store = mask_store(tmp_path / "s.zarr", {"net": noise((30, 40))})
    for feature in load(write_geojson(store, "net", tmp_path / "s.geojson"))["features"]:
        rings = [np.array(r) for r in feature["geometry"]["coordinates"]]
        assert all((r[0] == r[-1]).all() for r in rings)
        signs = [np.sign(area(*r.T)) for r in rings]
        assert signs == [1, *[-1] * (len(rings) - 1)]


@examples(25)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from(list(NAMES))),
    st.sampled_from([(1.0, 1.0), (2.0, 2.0), (1.979, 2.013), (3.0, 1.5)]),
    st.sampled_from([(0, 0), (1024, 512)]),
)
def test_the_polygons_are_the_mask(
    tmp_path_factory: pytest.TempPathFactory, mask: Mask, scale: tuple[float, float], origin_px0: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("s")
    store = mask_store(folder / "s.zarr", {"net": mask}, scale, origin_px0)
    path = write_geojson(store, "net", folder / "s.geojson")
    verify_geojson(path, store, "net")
    np.testing.assert_array_equal(read_back(path, store), drawn(mask))
    found = [
        (f["properties"]["classification"]["name"], [np.array(r) for r in f["geometry"]["coordinates"]])
        for f in load(path)["features"]
    ]
    pieces = [(name, pixels_of([r[:-1] / scale for r in rings], mask.shape)) for name, rings in found]
    assert sorted(pieces, key=lambda p: min(p[1])) == [(NAMES[v], piece) for v, piece in pieces_of(drawn(mask))]


def test_qupath_counts_from_the_bounds_of_the_slide(tmp_path: Path) -> None:
    # the frame begins at the last pixel of the coarsest level before the bounds
    store = mask_store(tmp_path / "s.zarr", {"net": blocks()}, (2.0, 2.0), (1024, 512), bounds_px0=(1030, 513))
    path = write_geojson(store, "net", tmp_path / "s.geojson")
    coordinates = next(
        f["geometry"]["coordinates"]
        for f in load(path)["features"]
        if f["properties"]["classification"]["name"] == "stroma"
    )
    assert coordinates[0][0] == [3 * 2 + 1024 - 1030, 2 * 2 + 512 - 513]
    verify_geojson(path, store, "net")
    regions = read_geojson(path, (1030, 513))
    assert regions[0].rings[0][0].tolist() == list(store.grid.to_px0((3, 2)))
    del store.meta["slide"]
    assert store.shown_from_px0 == (1024, 512), "without bounds the frame is all that is known"


def test_the_same_mask_gives_the_same_file_and_every_piece_its_own_id(tmp_path: Path) -> None:
    store = mask_store(tmp_path / "s.zarr", {"net": noise((40, 50)), "other": noise((40, 50))})
    files = [write_geojson(store, "net", tmp_path / f"{i}.geojson").read_bytes() for i in "ab"]
    assert files[0] == files[1]
    ids = [f["id"] for f in load(tmp_path / "a.geojson")["features"]]
    others = [f["id"] for f in load(write_geojson(store, "other", tmp_path / "c.geojson"))["features"]]
    assert len({*ids, *others}) == len(ids) + len(others) == 2 * len(pieces_of(drawn(noise((40, 50)))))


def test_nothing_to_draw(tmp_path: Path) -> None:
    store = mask_store(tmp_path / "s.zarr", {"net": np.full((5, 6), 255, np.uint8)})
    path = write_geojson(store, "net", tmp_path / "s.geojson")
    assert load(path)["features"] == []
    verify_geojson(path, store, "net")


def large(shape: tuple[int, int]) -> Mask:
    """Blocks of 20 px, so that level 1 holds all of it; the border is no whole pixel of level 1."""
    return np.kron(noise((-(-shape[0] // 20), -(-shape[1] // 20))), np.ones((20, 20), np.uint8))[: shape[0], : shape[1]]


def test_a_coarser_level(tmp_path: Path) -> None:
    mask = large((259, 1101))
    store = mask_store(tmp_path / "s.zarr", {"net": mask})
    path = write_geojson(store, "net", tmp_path / "s.geojson", GeoJsonOptions(level=1))
    verify_geojson(path, store, "net")
    np.testing.assert_array_equal(read_back(path, store), drawn(mask))
    found = sum(f["properties"]["measurements"]["Area µm^2"] for f in load(path)["features"])
    assert found == pytest.approx(0.25 * np.count_nonzero(drawn(mask)))
    with pytest.raises(ConfigError, match=r"geojson\.level: 2 is beyond the 2 levels"):
        write_geojson(store, "net", tmp_path / "t.geojson", GeoJsonOptions(level=2))


def test_small_pieces_are_left_out_and_outlines_simplified(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[:, :30] = 2 * np.tri(30, dtype=np.uint8)
    mask[2, 35], mask[5:8, 35:38] = 1, 1
    store = mask_store(tmp_path / "s.zarr", {"net": mask})
    options = GeoJsonOptions(min_area_um2=2.25, tolerance_um=0.5)
    path = write_geojson(store, "net", tmp_path / "s.geojson", options)
    small, triangle = load(path)["features"]
    assert small["geometry"]["coordinates"] == [[[35, 5], [38, 5], [38, 8], [35, 8], [35, 5]]]
    assert triangle["geometry"]["coordinates"] == [[[0, 0], [30, 30], [0, 30], [0, 0]]]
    assert triangle["properties"]["measurements"]["Area µm^2"] == 465 * 0.25  # of the mask, not of what is drawn
    with pytest.raises(
        StoreError, match=r"made with tolerance_um 0\.5; only exact files can be verified; export with 0"
    ):
        verify_geojson(path, store, "net")


def test_many_bands_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = mask_store(tmp_path / "s.zarr", {"net": large((1099, 1501))})
    whole = write_geojson(store, "net", tmp_path / "a.geojson").read_bytes()
    verify_geojson(tmp_path / "a.geojson", store, "net")
    monkeypatch.setattr(geojson, "_BLOCK", 3)
    assert write_geojson(store, "net", tmp_path / "b.geojson").read_bytes() == whole


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (TUMOUR, TUMOUR.replace(",6]", ",5]"), r"first at 7, 5 \(px of its level\): found tumour; expected none"),
        ("[3,12]", "[3,12.5]", "not in the layout of wsipipe .coordinate 12.5 is not on a pixel edge"),
        ("[3,12]", "[3,13]", "a ring that is open or does not follow pixel edges"),
        ('"fat"', '"tumour"', "first at 20, 15 .* found tumour; expected fat"),
        ('"fat"', '"bone"', "not in the layout of wsipipe .'bone'"),
        (',[[5,4],[5,10],[13,10],[13,4],[5,4]]', "", "first at 5, 4 .* found stroma; expected none"),
        ("[20,15],[24,15],[24,18],[20,18],[20,15]", "[3,2],[15,2],[15,18],[3,18],[3,2]", "found stroma and fat"),
        ("]}\n", "", "it is truncated"),
        ('"digest": "d"', '"digest": "e"', "made from labels/net of slide slide, digest 'e'; expected labels/net of"),
        ('"slide_id": "slide"', '"slide_id": "x"', "made from labels/net of slide x, .* export it again"),
        ('{"type":"FeatureCollection"', '[{"type":', "not in the layout of wsipipe"),
    ],
)  # fmt: skip
def test_a_changed_file_is_noticed(store: SlideStore, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_geojson(store, "net", tmp_path / "s.geojson")
    verify_geojson(path, store, "net")
    text = path.read_text()
    assert old in text
    path.write_text(new.join(text.rsplit(old, 1)))
    with pytest.raises(StoreError, match=message):
        verify_geojson(path, store, "net")


def test_a_file_of_a_mask_that_has_changed_is_told(store: SlideStore, tmp_path: Path) -> None:
    path = write_geojson(store, "net", tmp_path / "s.geojson")
    changed = blocks()
    changed[19, 3] = 2
    write_mask(store, "net", changed)  # under the same digest
    with pytest.raises(StoreError, match=r"first at 3, 19 .* found none; expected tumour"):
        verify_geojson(path, store, "net")
    with pytest.raises(StoreError, match=r"gone\.geojson: no such file; export it first"):
        verify_geojson(tmp_path / "gone.geojson", store, "net")


def test_more_than_eight_classes_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {i: f"c{i}" for i in range(21)}
    monkeypatch.setattr("support.masked.NAMES", many)
    mask = np.random.default_rng(0).integers(0, 21, (20, 30)).astype(np.uint8)
    store = mask_store(tmp_path / "s.zarr", {"net": mask})
    path = write_geojson(store, "net", tmp_path / "s.geojson")
    verify_geojson(path, store, "net")
    value, other = int(mask[0, 0]), int(mask[0, 0]) % 20 + 1
    assert value > 0
    path.write_text(path.read_text().replace(f'"c{value}"', f'"c{other}"', 1))
    with pytest.raises(StoreError, match=rf"found c{other}; expected c{value}"):
        verify_geojson(path, store, "net")


def test_a_value_without_a_class(tmp_path: Path) -> None:
    mask = blocks()
    mask[13, 2] = 7
    store = mask_store(tmp_path / "s.zarr", {"net": mask})
    (tmp_path / "s.geojson").write_text("old")
    with pytest.raises(StoreError, match="labels/net holds the value 7 at 2, 13, which has no class"):
        write_geojson(store, "net", tmp_path / "s.geojson")
    assert [p.name for p in tmp_path.glob("*s.geojson*")] == ["s.geojson"]
    assert (tmp_path / "s.geojson").read_text() == "old"


@pytest.mark.parametrize(
    "wrong", [{"level": -1}, {"tolerance_um": -0.1}, {"tolerance_um": np.nan}, {"min_area_um2": -1}]
)
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"geojson\.{next(iter(wrong))}: "):
        GeoJsonOptions(**wrong)


def test_no_such_mask(store: SlideStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no labels/gone; found net"):
        write_geojson(store, "gone", tmp_path / "s.geojson")
