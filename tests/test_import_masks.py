"""Importing masks: what is written, skipping and overwriting, and failures that affect one store only."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from wsipipe.config.options import RunConfig
from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.import_masks import ImportOptions
from wsipipe.import_masks import run as run_stage
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore

SIZE_PX0 = (60, 40)
MASK = np.random.default_rng(0).integers(0, 3, (40, 60)).astype(np.uint8)


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """Stores and ledgers of one test."""
    return RunContext(RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs")))


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """Stores a, b, c at half the slide's resolution; a and b have masks."""
    (tmp_path / "masks").mkdir()
    for slide_id in "ab":
        write_mask(tmp_path, slide_id, MASK)
    grid = Grid(SIZE_PX0, (0.5, 0.5), (2.0, 2.0), 16, 16)
    paths = [tmp_path / "stores" / f"{i}.zarr" for i in "abc"]
    for path in paths:
        SlideStore.create(path, grid, 90, {"slide_id": path.stem, "pixel_digest": "p"})
    return paths


def write_mask(tmp_path: Path, slide_id: str, mask: NDArray[np.uint8]) -> None:
    (tmp_path / "masks" / f"{slide_id}.png").write_bytes(imagecodecs.png_encode(mask))


def imported(
    stores: list[Path],
    context: RunContext,
    value_map: str = "0=ignore,1=0,2=tumour",
    classes: tuple[str, ...] = ("stroma", "tumour"),
    name: str = "mine",
) -> tuple[Report, list[Path]]:
    """What the stage returns for the folder of masks."""
    return run_stage(stores, ImportOptions(str(context.runs.parent / "masks"), classes, name, value_map), context)


def test_masks_become_labels(stores: list[Path], context: RunContext, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    watched = context.with_progress(lambda task, done, total, note="": seen.append((done, total)))
    report, written = imported(stores, watched)
    assert written == stores[:2]
    assert [(r["item"], r["status"]) for r in report.rows] == [("a", "done"), ("b", "done")]
    assert seen == [(0, 2), (1, 2), (2, 2)]
    store = SlideStore(stores[0])
    expected = np.array([255, 0, 2], np.uint8)[MASK[1::2, 1::2]]
    np.testing.assert_array_equal(store.labels("mine").read(Window(0, 0, 30, 20)), expected)
    meta = store.attributes("labels", "mine")
    assert meta["classes"] == ["stroma", "tumour"]
    assert meta["source"] == str((tmp_path / "masks" / "a.png").resolve())
    assert SlideStore(stores[2]).names("labels") == []
    rows = list(csv.DictReader((context.runs / "mine" / "import.csv").read_text().splitlines()))
    assert [r["item"] for r in rows] == ["a", "b"]


def test_annotations_become_labels(stores: list[Path], context: RunContext, tmp_path: Path) -> None:
    ring = [[10, 4], [50, 4], [50, 36], [10, 36]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    (tmp_path / "masks" / "c.geojson").write_text(json.dumps(feature))
    report, written = imported(stores[2:], context, "Tumor=tumour,outside=ignore")
    assert written == stores[2:]
    expected = np.full((20, 30), 255, np.uint8)
    expected[2:18, 5:25] = 2
    np.testing.assert_array_equal(SlideStore(stores[2]).labels("mine").read(Window(0, 0, 30, 20)), expected)
    report, written = imported(stores[2:], context, "Tumor=stroma,outside=ignore")
    assert "was made from other inputs" in report.rows[0]["reason"]


def test_the_same_import_again_is_skipped(stores: list[Path], context: RunContext) -> None:
    imported(stores, context)
    report, written = imported(stores, context)
    assert {r["status"] for r in report.rows} == {"skipped"}
    assert written == stores[:2]


@pytest.mark.parametrize("what", ["map", "classes", "mask"])
def test_other_inputs_need_overwrite(stores: list[Path], context: RunContext, tmp_path: Path, what: str) -> None:
    imported(stores, context)
    classes = ("other", "tumour") if what == "classes" else ("stroma", "tumour")
    text = "0=0,1=0,2=tumour" if what == "map" else "0=ignore,1=0,2=tumour"
    if what == "mask":
        for slide_id in "ab":
            write_mask(tmp_path, slide_id, np.flip(MASK, 0).copy())
    report, written = imported(stores, context, text, classes)
    assert written == []
    assert "labels/mine was made from other inputs; choose another --name, or" in report.rows[0]["reason"]
    report, written = imported(stores, replace(context, overwrite=True), text, classes)
    assert written == stores[:2]
    assert {r["status"] for r in report.rows} == {"done"}


def test_a_bad_mask_or_store_does_not_stop_the_others(stores: list[Path], context: RunContext, tmp_path: Path) -> None:
    write_mask(tmp_path, "a", np.zeros((8, 9), np.uint8))
    report, written = imported([*stores, tmp_path / "gone.zarr"], context)
    assert written == [stores[1]]
    reasons = {r["item"]: r["reason"] for r in report.of("failed")}
    assert "found 9 x 8 px; expected 60 x 40 px" in reasons["a"]
    assert "not a store" in reasons["gone"]
    assert report.exit_code == 1


def test_values_without_a_meaning(stores: list[Path], context: RunContext) -> None:
    with pytest.raises(ConfigError, match=r"a\.png: holds values 2 that have no meaning.*give --map"):
        imported(stores, context, "0=0,1=0")
    assert SlideStore(stores[0]).names("labels") == []
    assert not [p for p in stores[0].parent.iterdir() if p.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": "tissue"}, "name 'tissue': reserved by wsipipe; choose another --name"),
        ({"name": "../x"}, r"name '\.\./x': use letters"),
        ({"classes": ()}, "no classes; name them in mask order, e.g. --class"),
        ({"classes": ("a", "a")}, "classes a, a: a name appears twice"),
        ({"classes": ("ignore",)}, "class 'ignore': the word is reserved for value 255"),
    ],
)
def test_names_that_cannot_be_used(more: dict[str, Any], message: str) -> None:
    options = {"annotations": "masks", "classes": ("stroma", "tumour"), "name": "mine", **more}
    with pytest.raises(ConfigError, match=message):
        ImportOptions(**options)


def test_unknown_class_and_missing_masks(stores: list[Path], context: RunContext) -> None:
    with pytest.raises(ConfigError, match="--map: '1=fat': unknown class 'fat'; known are stroma, tumour"):
        imported(stores, context, "1=fat")
    with pytest.raises(ConfigError, match=r"no mask for any of the 1 slides \(c\)"):
        imported(stores[2:], context)


def test_no_store_can_be_opened(context: RunContext, tmp_path: Path) -> None:
    report, written = imported([tmp_path / "gone.zarr"], context)
    assert (report.exit_code, written) == (1, [])
    with pytest.raises(StoreError, match="not a store"):
        SlideStore(tmp_path / "gone.zarr")
