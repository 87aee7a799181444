"""Stores that earlier releases wrote still open, verify, and read to the same values.

`archives/schema<N>.zip` contains one small complete store, written by the first release with schema N: two levels of
JPEG, tissue, two lattices of patches, a mask with its objects, scores and features. It is never written again; a new
schema gets an archive of its own (see the docstring of `wsipipe.store`).
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsipipe.geometry import Grid, Window
from wsipipe.store import SlideStore, layout
from wsipipe.store.features import feature_names, open_features
from wsipipe.store.info import describe
from wsipipe.store.shards import ShardedArray
from wsipipe.store.verify import verify

ARCHIVES = Path(__file__).parents[1] / "archives"

DIGESTS = {
    "pixels": ("6b9fc7e68f69e24f", "0341f5c4e85d5934"),
    "tissue": ("0a7ccbd50ded1f81", "9fd679277b190f21"),
    "drawn": ("6325d367b9076937", "95d7bc7a74d85da4"),
    "objects": ("8e5b0a3b67e0e236", "d38f837debb8590a"),
    "scores": ("542f1eabfb2494e4",),
}
"""Digests of the decoded values, by level, as the release that wrote schema 2 read them."""


@pytest.fixture
def archived(tmp_path: Path) -> SlideStore:
    """The store of schema 2."""
    with zipfile.ZipFile(ARCHIVES / "schema2.zip") as archive:
        archive.extractall(tmp_path)
    return SlideStore(tmp_path / "tiny.zarr")


def digest_of(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def whole(array: ShardedArray) -> np.ndarray:
    height, width = array.spec.shape[-2:]
    return array.read(Window(0, 0, width, height))


def test_the_schema_of_this_version_has_an_archive() -> None:
    assert (ARCHIVES / f"schema{layout.SCHEMA}.zip").is_file()


def test_an_archived_store_is_undamaged(archived: SlideStore) -> None:
    verdict = verify(archived.path, decode=True)
    assert (verdict.damage, verdict.leftovers, verdict.chunks) == ((), (), 41)


def test_an_archived_store_has_its_metadata_and_digests(archived: SlideStore) -> None:
    assert archived.slide_id == "tiny"
    assert archived.grid == Grid((1200, 400), (0.5, 0.5), (1.0, 1.0), 64, 64)
    assert archived.digest == "796b7237b00520f7995e0de8ac404d57"
    assert archived.pixel_digest == "4b543dd225c7ecaec24598080a0a3dc1"
    assert archived.patches_digest(64, 64) == "674bb35078b1dc03b181926b29d21656"
    assert [archived.names(kind) for kind in ("labels", "objects", "scores")] == [["drawn", "tissue"], *[["drawn"]] * 2]
    assert archived.attributes("labels", "drawn")["classes"] == ["tumour", "stroma"]
    assert "labels     drawn: tumour, stroma" in describe(archived.path).splitlines()


def test_pixels_and_maps_of_an_archived_store_have_the_same_values(archived: SlideStore) -> None:
    levels = range(archived.grid.levels)
    rgb = [archived.read(Window(0, 0, *archived.grid.level_shape(level)[::-1]), level) for level in levels]
    found = {
        "pixels": rgb,
        "tissue": [whole(archived.labels("tissue", level)) for level in levels],
        "drawn": [whole(archived.labels("drawn", level)) for level in levels],
        "objects": [whole(archived.objects("drawn", level)) for level in levels],
        "scores": [whole(archived.scores("drawn"))],
    }
    assert {name: tuple(map(digest_of, values)) for name, values in found.items()} == DIGESTS


def test_patches_and_features_of_an_archived_store_have_the_same_values(archived: SlideStore) -> None:
    tables = [archived.patches(64, stride_px) for stride_px in (64, 32)]
    assert [(len(t.cell), digest_of(t.cell), digest_of(t.tissue)) for t in tables] == [
        (28, "5b748dc800be102c", "3df35159b7e1f5ce"),
        (117, "342851aefc42bf6d", "18e59c689a2a99e8"),
    ]
    assert not any(t.status.any() for t in tables)
    assert feature_names(archived) == [("encoder", "64_64_1")]
    features = open_features(archived, "encoder", "64_64_1", (*archived.grid.cells(64), 4), "archive")
    values = features.read(tables[0].cell)
    np.testing.assert_array_equal(values, np.arange(28 * 4, dtype=np.float32).reshape(28, 4) / 8)
    assert np.isnan(features.read(np.array([[0, 0]], np.int32))).all()


def test_an_archived_store_takes_new_masks(archived: SlideStore) -> None:
    height, width = archived.grid.level_shape(0)
    mask = np.full((height, width), 1, np.uint8)
    archived.write_labels("new", {1: "a"}, {"digest": "x", "classes": ["a"]}, [((0, 0), mask)])
    assert verify(archived.path).damage == ()
    assert SlideStore(archived.path).names("labels") == ["drawn", "new", "tissue"]
