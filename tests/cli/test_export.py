"""From a trained network to files: a slide that was never tiled, and every format of export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import tifffile
from support.tiny_chain import assert_refused, wsipipe

from wsipipe.geometry import Window
from wsipipe.store import SlideStore


def test_a_slide_that_was_never_tiled_is_mapped_by_a_network(here: Path):
    shutil.copy(here / "slides" / "pos.svs", here / "new.svs")
    result = wsipipe("segment", "--checkpoint", "runs/unet/model.json", "--stitch", "new.svs")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == ["stores/new.zarr"]
    new, old = (SlideStore(here / "stores" / f"{n}.zarr") for n in ("new", "pos"))
    assert new.grid.patch_px == 128
    everything = Window(0, 0, *old.grid.size_px)
    np.testing.assert_array_equal(new.labels("unet").read(everything), old.labels("unet").read(everything))
    again = wsipipe("segment", "--checkpoint", "runs/unet/model.json", "--stitch", "new.svs", "stores/neg.zarr")
    assert again.exit_code == 0, again.stderr
    assert sorted(again.stdout.split()) == ["stores/neg.zarr", "stores/new.zarr"]


def test_a_slide_is_tiled_as_the_slides_of_the_network_were_stain_too(here: Path):
    shutil.copy(here / "slides" / "pos.svs", here / "new.svs")
    note = json.loads((here / "runs" / "unet" / "model.json").read_text())
    (here / "runs" / "unet" / "model.json").write_text(json.dumps(note | {"normalise_stain": True}))
    result = wsipipe("segment", "--checkpoint", "runs/unet/model.json", "--stitch", "new.svs")
    assert result.exit_code == 0, result.stderr
    assert SlideStore(here / "stores" / "new.zarr").is_normalised


def test_a_slide_without_a_network_is_refused(here: Path):
    assert_refused(wsipipe("segment", "--stitch", "slides/pos.svs"), 1, "slides/pos.svs")


def test_export_writes_what_other_programs_open_and_reads_it_back(here: Path):
    result = wsipipe("export", "--verify", "stores/pos.zarr")
    assert result.exit_code == 0, result.stderr
    names = ["pos.geojson", "pos.ome.tif", "pos.png", "areas.csv"]
    assert result.stdout.split() == [f"export/unet/{n}" for n in names]
    store = SlideStore(here / "stores" / "pos.zarr")
    mask = store.labels("unet").read(Window(0, 0, *store.grid.size_px))
    np.testing.assert_array_equal(tifffile.imread(here / "export" / "unet" / "pos.ome.tif"), mask)
    collection = json.loads((here / "export" / "unet" / "pos.geojson").read_text())
    assert {f["properties"]["classification"]["name"] for f in collection["features"]} <= {"tumour"}
    assert_refused(wsipipe("export", "--format", "pdf"), 2, "'pdf' is not known; choose from areas")
    assert wsipipe("export", "--format", "areas", "--masks", "camel").stdout.split() == ["export/camel/areas.csv"]
