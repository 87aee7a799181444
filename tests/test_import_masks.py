"""Importing masks: what lands in the store, skipping and overwriting, and failures that cost one store."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from wsipipe.config.options import RunConfig
from wsipipe.errors import ConfigError, StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.import_masks import import_masks
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore

SIZE_PX0 = (60, 40)
MASK = np.random.default_rng(0).integers(0, 3, (40, 60)).astype(np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"))


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
    stores: list[Path], run: RunConfig, text: str = "0=ignore,1=0,2=tumour", **more: object
) -> tuple[Report, list[Path]]:
    spec = str(Path(run.runs).parent / "masks")
    options = {"classes": ("stroma", "tumour"), "name": "mine", **more}
    return import_masks(stores, spec, text, run=run, **options)  # type: ignore[arg-type]


def test_masks_become_labels(stores: list[Path], run: RunConfig, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report, written = imported(stores, run, progress=lambda task, done, total, note="": seen.append((done, total)))
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
    rows = list(csv.DictReader((Path(run.runs) / "mine" / "import.csv").read_text().splitlines()))
    assert [r["item"] for r in rows] == ["a", "b"]


def test_annotations_become_labels(stores: list[Path], run: RunConfig, tmp_path: Path) -> None:
    ring = [[10, 4], [50, 4], [50, 36], [10, 36]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    (tmp_path / "masks" / "c.geojson").write_text(json.dumps(feature))
    report, written = imported(stores[2:], run, "Tumor=tumour,outside=ignore")
    assert written == stores[2:]
    expected = np.full((20, 30), 255, np.uint8)
    expected[2:18, 5:25] = 2
    np.testing.assert_array_equal(SlideStore(stores[2]).labels("mine").read(Window(0, 0, 30, 20)), expected)
    report, written = imported(stores[2:], run, "Tumor=stroma,outside=ignore")
    assert "was made from other inputs" in report.rows[0]["reason"]


def test_the_same_again_is_skipped(stores: list[Path], run: RunConfig) -> None:
    imported(stores, run)
    report, written = imported(stores, run)
    assert {r["status"] for r in report.rows} == {"skipped"}
    assert written == stores[:2]


@pytest.mark.parametrize("what", ["map", "classes", "mask"])
def test_other_inputs_need_overwrite(stores: list[Path], run: RunConfig, tmp_path: Path, what: str) -> None:
    imported(stores, run)
    more: dict[str, object] = {"classes": ("other", "tumour")} if what == "classes" else {}
    text = "0=0,1=0,2=tumour" if what == "map" else "0=ignore,1=0,2=tumour"
    if what == "mask":
        for slide_id in "ab":
            write_mask(tmp_path, slide_id, np.flip(MASK, 0).copy())
    report, written = imported(stores, run, text, **more)
    assert written == []
    assert "labels/mine was made from other inputs; choose another --name, or" in report.rows[0]["reason"]
    report, written = imported(stores, run, text, overwrite=True, **more)
    assert written == stores[:2]
    assert {r["status"] for r in report.rows} == {"done"}


def test_a_bad_mask_or_store_costs_only_itself(stores: list[Path], run: RunConfig, tmp_path: Path) -> None:
    write_mask(tmp_path, "a", np.zeros((8, 9), np.uint8))
    report, written = imported([*stores, tmp_path / "gone.zarr"], run)
    assert written == [stores[1]]
    reasons = {r["item"]: r["reason"] for r in report.of("failed")}
    assert "found 9 x 8 px; expected 60 x 40 px" in reasons["a"]
    assert "not a store" in reasons["gone"]
    assert report.exit_code == 1


def test_values_without_a_meaning(stores: list[Path], run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"a\.png: holds values 2 that have no meaning.*give --map"):
        imported(stores, run, "0=0,1=0")
    assert SlideStore(stores[0]).names("labels") == []
    assert not [p for p in stores[0].parent.iterdir() if p.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": "tissue"}, "name 'tissue': reserved by wsipipe; choose another --name"),
        ({"name": "../x"}, r"name '\.\./x': use letters"),
        ({"classes": ()}, "no classes given; name them in mask order, e.g. --class"),
        ({"classes": ("a", "a")}, "classes a, a: a name is given twice"),
        ({"classes": ("ignore",)}, "class 'ignore': this word means value 255"),
    ],
)
def test_names_that_cannot_be_used(stores: list[Path], run: RunConfig, more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imported(stores, run, **more)


def test_unknown_class_and_missing_masks(stores: list[Path], run: RunConfig) -> None:
    with pytest.raises(ConfigError, match="--map: '1=fat': unknown class 'fat'; known are stroma, tumour"):
        imported(stores, run, "1=fat")
    with pytest.raises(ConfigError, match=r"no mask for any of the 1 slides \(c\)"):
        imported(stores[2:], run)


def test_no_store_can_be_opened(run: RunConfig, tmp_path: Path) -> None:
    report, written = imported([tmp_path / "gone.zarr"], run)
    assert (report.exit_code, written) == (1, [])
    with pytest.raises(StoreError, match="not a store"):
        SlideStore(tmp_path / "gone.zarr")
