"""Tables: aligned text, a CSV that reads back to the same scores, JSON without NaN, and atomic files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from wsipipe.evaluate.judge import Evaluation
from wsipipe.evaluate.metrics import Confusion
from wsipipe.evaluate.tables import text_table, write_tables
from wsipipe.runtime import Report


@pytest.fixture
def evaluation() -> Evaluation:
    """Class b occurs neither in truth nor in the answer: its scores are undefined."""
    counts = np.zeros((3, 4), np.int64)
    counts[:2, :2] = [[50, 10], [20, 20]]
    counts[1, 3] = 5
    net = Confusion(("a", "b"), counts)
    tissue = Confusion.binary("a", np.array([[0, 60], [0, 45]]))
    report = Report()
    report.add("s2", "failed", "no labels/net")
    return Evaluation(("a", "b"), {"net": net, "all tissue is a": tissue}, ("s0", "s1"), "scored: 105 px", report)


def test_text_isaligned_and_undefined_is_a_dash(evaluation: Evaluation) -> None:
    assert text_table(evaluation).splitlines() == [
        "answer           class    IoU   Dice  precision  recall",
        "---------------  -----  -----  -----  ---------  ------",
        "net              a      0.364  0.533      0.667   0.444",
        "net              b          -      -          -       -",
        "all tissue is a  a      0.429  0.600      0.429   1.000",
        "net: mIoU 0.476 (0.364 without class 0), frequency-weighted IoU 0.492, pixel accuracy 0.667",
        "scored: 105 px",
    ]


def test_csv_and_json_hold_the_scores(evaluation: Evaluation, tmp_path: Path) -> None:
    table, everything = write_tables(evaluation, tmp_path / "runs" / "net")
    assert sorted(p.name for p in table.parent.iterdir()) == ["evaluation.csv", "evaluation.json"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(r["answer"], r["class"]) for r in rows] == [("net", "a"), ("net", "b"), ("all tissue is a", "a")]
    assert float(rows[0]["iou"]) == evaluation.answers["net"].iou[1]
    assert (rows[0]["truth_px"], rows[0]["answer_px"]) == ("45", "30")
    assert rows[1]["dice"] == ""
    data = json.loads(everything.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert data["classes"] == ["a", "b"]
    assert data["slides"] == ["s0", "s1"]
    assert data["failed"][0]["item"] == "s2"
    net = data["answers"]["net"]
    assert net["iou"][2] is None
    assert net["miou"] == evaluation.answers["net"].miou
    assert net["not_predicted_px"] == 5
    assert net["confusion_truth_by_answer"] == [[50, 10, 0], [25, 20, 0], [0, 0, 0]]
