"""`masks import` and `evaluate`: what a user has as truth, and what comes out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from support.tiny_chain import SLIDES, assert_refused, wsipipe

from wsipipe.geometry import Window
from wsipipe.store import SlideStore


def test_imported_masks_are_the_users_pixels_and_evaluate_agrees(here: Path):
    command = ("masks", "import", "--annotations", "truth", "--class", "tumour", "--name", "mine")
    result = wsipipe(*command)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [f"stores/{name}.zarr" for name in sorted(SLIDES)]
    store = SlideStore(here / "stores/pos.zarr")
    import imagecodecs

    truth = imagecodecs.png_decode((here / "truth/pos.png").read_bytes())
    np.testing.assert_array_equal(store.labels("mine").read(Window(0, 0, *store.grid.size_px)), truth)
    assert wsipipe(*command).stdout == result.stdout
    evaluated = wsipipe("evaluate", "--masks", "mine", "--truth", "truth")
    assert evaluated.exit_code == 0, evaluated.stderr
    row = next(line for line in evaluated.stdout.splitlines() if line.startswith("mine"))
    assert row.split() == ["mine", "tumour", "1.000", "1.000", "1.000", "1.000"]


def test_evaluate_prints_a_table_and_writes_it_for_programs(here: Path):
    result = wsipipe("evaluate", "--truth", "truth", "--truth-map", "0=0,1=tumour")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split()[:6] == ["answer", "class", "IoU", "Dice", "precision", "recall"]
    assert "all tissue of positive slides  tumour" in result.stdout
    with (here / "runs/unet/evaluation.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert rows[0]["answer"] == "unet"
    data = json.loads((here / "runs/unet/evaluate.json").read_text())
    assert data["slides"] == sorted(SLIDES)
    shown = next(line for line in result.stdout.splitlines() if line.startswith("unet "))
    assert f"{float(rows[0]['iou'] or 'nan'):.3f}".replace("nan", "-") == shown.split()[2]


def test_evaluate_draws_a_figure_and_judges_the_scores_too(here: Path):
    result = wsipipe("evaluate", "--truth", "truth", "--truth-map", "0=0,1=tumour", "--glass", "scored")
    assert result.exit_code == 0, result.stderr
    assert (here / "runs/unet/evaluation.png").read_bytes()[:4] == b"\x89PNG"
    for fragment in ("slide AUC", "FROC of Camelyon16", "ECE of pixels", "scored like tissue"):
        assert fragment in result.stdout
    data = json.loads((here / "runs/unet/evaluate.json").read_text())
    assert set(data["slide_scores"]) == set(SLIDES)


def test_annotations_are_truth_for_import_and_evaluate(here: Path):
    (here / "drawn").mkdir()
    points = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate([(0, 0), (99, 0), (0, 99)])
    )
    (here / "drawn/pos.xml").write_text(
        f'<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="_0"><Coordinates>{points}'
        "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    result = wsipipe(
        "masks", "import", "--annotations", "drawn", "--map", "_0=tumour", "--class", "tumour", "--name", "mine"
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["stores/pos.zarr"]
    command = ("evaluate", "stores/pos.zarr", "--masks", "mine", "--truth", "drawn", "--glass", "scored")
    evaluated = wsipipe(*command, "--truth-map", "_0=tumour")
    assert evaluated.exit_code == 0, evaluated.stderr
    row = next(line for line in evaluated.stdout.splitlines() if line.startswith("mine"))
    assert row.split() == ["mine", "tumour", "1.000", "1.000", "1.000", "1.000"]
    assert_refused(wsipipe(*command), 2, "pos.xml: holds annotations called _0 that have no meaning")
    (here / "drawn/pos.xml").write_text("<ASAP_Annotations>")
    assert_refused(wsipipe(*command), 1, "none of 1 stores could be evaluated; the first: drawn/pos.xml")


def test_evaluate_takes_the_slides_of_a_split(here: Path):
    (here / "labels.csv").write_text("slide_id,label,split\npos,tumour,train\nneg,,train\nextra,,test\n")
    result = wsipipe("evaluate", "--truth", "truth", "--truth-map", "0=0,1=tumour", "--split", "test")
    assert result.exit_code == 0, result.stderr
    assert json.loads((here / "runs/unet/evaluate.json").read_text())["slides"] == ["extra"]
