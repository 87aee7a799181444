"""Files: a CSV that reads back to the same scores, JSON without NaN, and nothing else in the folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.evaluations import evaluation_of

from wsipipe.evaluate.files import write_files
from wsipipe.evaluate.metrics import scores_of


def test_csv_and_json_hold_the_scores(tmp_path: Path) -> None:
    evaluation = evaluation_of()
    table, everything = write_files(evaluation, tmp_path / "runs" / "net")
    assert sorted(p.name for p in table.parent.iterdir()) == ["evaluate.json", "evaluation.csv"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(r["answer"], r["class"]) for r in rows] == [("net", "a"), ("net", "b"), ("all tissue is a", "a")]
    assert float(rows[0]["iou"]) == scores_of(evaluation.answers["net"].matrix)["iou"][1]
    assert (rows[0]["truth_px"], rows[0]["answer_px"]) == ("45", "30")
    assert (rows[1]["dice"], rows[0]["dice_low"]) == ("", "")
    data = json.loads(everything.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert data["answers"]["net"]["miou"] == scores_of(evaluation.answers["net"].matrix)["miou"]


def test_csv_with_intervals_and_detections(tmp_path: Path) -> None:
    table, _, points = write_files(evaluation_of(9), tmp_path)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert float(rows[0]["dice_low"]) == pytest.approx(8 / 15)
    assert points.read_text().splitlines() == ["slide,class,x_px0,y_px0,p", "s0,a,1.0,2.0,0.5000"]
