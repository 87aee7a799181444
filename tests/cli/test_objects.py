"""Objects on the command line: written with the mask, gone with it, and never taken for one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from support.tiny_chain import assert_refused, wsipipe

from wsipipe.geometry import Window
from wsipipe.pseudolabel.objects import COLUMNS
from wsipipe.store import SlideStore

BRIEF = ["steps=2", "batch=4", "boundary_steps=2", "boundary_batch=2", "map_size=8", "background=0.05", "max_windows=8"]
IRNET = ("pseudolabel", "--method", "irnet", *(a for b in BRIEF for a in ("--set", b)), "--quiet")
OBJECTS = (*IRNET, "--set", "displacement=true")
SLIDES = ("extra", "neg", "pos")


def store(name: str = "extra") -> SlideStore:
    return SlideStore(Path("stores") / f"{name}.zarr")


def table(name: str = "extra") -> Path:
    return Path("runs") / "irnet" / "objects" / f"{name}.csv"


def times() -> dict[Path, int]:
    found = (p for p in Path("stores").glob("*.zarr/labels/irnet*/**/*") if p.is_file())
    return {p: p.stat().st_mtime_ns for p in [*found, *map(table, SLIDES)]}


@pytest.fixture
def objects(here: Path) -> Path:
    """The finished chain with the masks of IRNet and their objects."""
    result = wsipipe(*OBJECTS)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [f"stores/{n}.zarr" for n in SLIDES]
    return here


def test_irnet_writes_objects_beside_its_masks(objects: Path):
    for name in SLIDES:
        s = store(name)
        whole = Window(0, 0, *s.grid.size_px)
        mask, image = s.labels("irnet").read(whole), s.objects("irnet").read(whole)
        np.testing.assert_array_equal(image > 0, (mask > 0) & (mask < 255))
        assert not image[s.labels("tissue").read(whole) != 1].any()
        with table(name).open() as file:
            rows = list(csv.DictReader(file))
        assert [int(r["object"]) for r in rows] == np.unique(image[image > 0]).tolist()
        for r in rows:
            assert tuple(r) == COLUMNS
            y, x = np.nonzero(image == int(r["object"]))
            box = (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
            assert tuple(float(r[c]) for c in COLUMNS[3:7]) == box, "a working px of these slides is a level-0 px"
            assert float(r["area_um2"]) == pytest.approx(len(y) / 4, abs=0.01)
            assert 0 <= float(r["score"]) <= 1
    assert store("extra").attributes("objects", "irnet")["objects"] > 0
    assert wsipipe("verify", "--quiet").exit_code == 0
    assert "in labels/irnet-objects" in wsipipe("info", "stores/extra.zarr").stdout


def test_what_is_there_is_not_made_again_and_what_is_missing_is(objects: Path):
    before = times()
    assert wsipipe(*OBJECTS).exit_code == 0
    assert times() == before
    text = table().read_text()
    table().unlink()
    assert wsipipe(*OBJECTS).exit_code == 0
    after = times()
    assert table().read_text() == text
    assert {p for p in after if after[p] != before[p]} >= {table()}
    assert all(after[p] == before[p] for p in before if "neg" in str(p))


def test_objects_go_when_they_are_no_longer_asked_for(objects: Path):
    assert_refused(wsipipe(*IRNET), 1, "replace it with --overwrite")
    assert store().names("objects") == ["irnet"]
    assert wsipipe(*IRNET, "--overwrite").exit_code == 0
    assert store().names("objects") == []
    assert not any(table(n).exists() for n in SLIDES)
    assert wsipipe(*OBJECTS, "--overwrite").exit_code == 0
    assert store().names("objects") == ["irnet"]


def test_objects_are_cut_anew_where_a_threshold_changes_the_mask(objects: Path):
    before = store().attributes("objects", "irnet")["digest"]
    assert wsipipe(*OBJECTS, "--set", "background=0.9", "--overwrite").exit_code == 0
    s = store()
    assert s.attributes("objects", "irnet")["digest"] == s.attributes("labels", "irnet")["digest"] != before


def test_objects_are_not_taken_for_a_mask(objects: Path):
    result = wsipipe("compare", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "-objects" not in result.stdout
    said = "labels/irnet-objects is an image of objects, not a class mask"
    truth = ("--truth", "truth", "--truth-map", "0=0,1=tumour")
    assert_refused(wsipipe("compare", "--masks", "irnet-objects,camel"), 1, said)
    assert_refused(wsipipe("evaluate", "--masks", "irnet-objects", *truth), 1, said)
    assert_refused(wsipipe("segment", "--masks", "irnet-objects", "--name", "net"), 1, "labels/irnet-objects")
    assert_refused(wsipipe("pseudolabel", "--name", "x-objects"), 2, "the ending -objects is reserved for objects")
    for form in ("ome-tiff", "geojson", "overlay", "areas"):
        result = wsipipe("export", "--masks", "irnet-objects", "--format", form)
        assert result.exit_code == 1
        assert said in result.stderr
        assert "Traceback" not in result.stderr
