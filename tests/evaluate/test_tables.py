"""Tables: aligned text, a CSV that reads back to the same scores, JSON without NaN, and atomic files."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from support.evaluations import evaluation_of

from wsipipe.evaluate.result import Evaluation
from wsipipe.evaluate.tables import text_table, write_tables


@pytest.fixture
def evaluation() -> Evaluation:
    return evaluation_of()


def test_text_isaligned_and_undefined_is_a_dash(evaluation: Evaluation) -> None:
    assert text_table(evaluation).splitlines() == [
        "answer           class    IoU   Dice  precision  recall",
        "---------------  -----  -----  -----  ---------  ------",
        "net              a      0.364  0.533      0.667   0.444",
        "net              b          -      -          -       -",
        "all tissue is a  a      0.429  0.600      0.429   1.000",
        "net: mIoU 0.476 (0.364 without class 0), frequency-weighted IoU 0.492 (by inverse logarithm, as HistoSegNet: "
        "0.472), pixel accuracy 0.667",
        "no scores of this name in the stores: no slide AUC and no calibration, no FROC",
        "scored: 105 px of 2 slides where the truth is not ignore",
        "  19.0 % of them glass, given: class 0 in truth and answer, by the tissue mask "
        "(not counted there: 5 px of named classes in the truth (10.0 % of them))",
        "  4.8 % of the scored px not predicted (taken for class 0)",
    ]


def test_text_with_intervals_and_scores() -> None:
    lines = text_table(evaluation_of(9)).splitlines()
    assert lines[0].endswith("  recall     Dice 95 %")
    assert lines[2].split()[-1] == "0.533..0.533"
    assert lines[4].split()[-1] == "-"
    assert lines[6].startswith("net, 95 % by resampling 9 slides: mIoU 0.4")
    assert lines[7:9] == [
        "slide AUC (truth: labels): a 0.750 (0.500..1.000), b - (-)",
        "FROC a: 0.500 (0.500 at 0.25, 0.500 at 0.5, 0.500 at 1, 0.500 at 2, 0.500 at 4, 0.500 at 8 false positives a "
        "slide; 18 lesions, 9 too small to count)",
    ]
    assert lines[9] == "FROC b: - (- false positives a slide; 0 lesions, 0 too small to count)"
    assert lines[10].startswith("calibration error, 15 bins: a 0.100 (pixels of tissue) 0.")


def test_text_of_the_interval_of_froc() -> None:
    result = evaluation_of(9)
    curve = dataclasses.replace(result.froc["a"], interval=(0.25, 0.75))
    lines = text_table(dataclasses.replace(result, froc={"a": curve})).splitlines()
    assert lines[8].endswith("slide; 18 lesions, 9 too small to count; 95 % 0.250..0.750)")


def test_text_of_few_groups() -> None:
    lines = text_table(dataclasses.replace(evaluation_of(3), groups=("p", "q", "r"))).splitlines()
    assert lines[0].endswith("recall")
    assert lines[6:10] == [
        "3 patients are too few for an interval; Dice of each:",
        "  s0: a 0.533, b -",
        "  s1: a 0.533, b -",
        "  s2: a 0.533, b -",
    ]


def test_csv_and_json_hold_the_scores(evaluation: Evaluation, tmp_path: Path) -> None:
    table, everything = write_tables(evaluation, tmp_path / "runs" / "net")
    assert sorted(p.name for p in table.parent.iterdir()) == ["evaluate.json", "evaluation.csv"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(r["answer"], r["class"]) for r in rows] == [("net", "a"), ("net", "b"), ("all tissue is a", "a")]
    assert float(rows[0]["iou"]) == evaluation.answers["net"].iou[1]
    assert (rows[0]["truth_px"], rows[0]["answer_px"]) == ("45", "30")
    assert (rows[1]["dice"], rows[0]["dice_low"]) == ("", "")
    data = json.loads(everything.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert data["answers"]["net"]["miou"] == evaluation.answers["net"].miou


def test_csv_with_intervals_and_detections(tmp_path: Path) -> None:
    table, _, points = write_tables(evaluation_of(9), tmp_path)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert float(rows[0]["dice_low"]) == pytest.approx(8 / 15)
    assert points.read_text().splitlines() == ["slide,class,x_px0,y_px0,p", "s0,a,1.0,2.0,0.5000"]
