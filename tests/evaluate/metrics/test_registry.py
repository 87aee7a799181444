"""A metric is a row of one module: every table, file and interval takes it up."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.evaluations import evaluation_of

from wsipipe.config.options import EvaluateConfig, RunConfig
from wsipipe.evaluate import compare, metrics
from wsipipe.evaluate.bootstrap import pixel_intervals, resample
from wsipipe.evaluate.cohort import EvaluateInputs
from wsipipe.evaluate.compare import CompareOptions, rows_of, write_comparison
from wsipipe.evaluate.evaluation import Spread
from wsipipe.evaluate.files import write_files
from wsipipe.evaluate.text import text_table
from wsipipe.runtime.context import RunContext

SPECIFICITY = '''\
"""Specificity."""

import numpy as np

from wsipipe.evaluate.metrics import Metric


def specificity_of(matrix):
    """Fraction of the pixels of other classes that are not predicted as the class."""
    counts = np.asarray(matrix, np.float64)
    negative = counts.sum((-2, -1))[..., None] - counts.sum(-1)
    false = counts.sum(-2) - np.diagonal(counts, axis1=-2, axis2=-1)
    return 1 - np.divide(false, negative, out=np.full(negative.shape, np.nan), where=negative > 0)


METRICS = (Metric("specificity", "specificity", specificity_of),)
'''


@pytest.fixture
def specificity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file more in the folder of metrics."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "clarity.py").write_text(SPECIFICITY)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "wsipipe.evaluate.metrics.clarity", raising=False)


@pytest.mark.usefixtures("specificity")
def test_one_file_adds_a_metric_to_the_files_and_tables_of_an_evaluation(tmp_path: Path) -> None:
    names = [m.name for m in metrics.per_class()]
    assert names == ["iou", "dice", "precision", "recall", "specificity"]
    evaluation = evaluation_of(9)
    matrices = np.stack([evaluation.answers["net"].matrix] * 9)
    spread = Spread(intervals=pixel_intervals(matrices, resample(evaluation.groups, 0)))
    evaluation = dataclasses.replace(evaluation, spread={"net": spread})
    lines = text_table(evaluation).splitlines()
    assert lines[0].endswith("recall  specificity")
    assert lines[2].endswith("0.833"), "of 60 px of other classes, 10 are predicted as a"
    assert any(line.startswith("a  ") and line.endswith("0.833..0.833") for line in lines)
    table, everything, _ = write_files(evaluation, tmp_path / "runs")
    row = next(csv.DictReader(table.read_text().splitlines()))
    for column in ("specificity", "specificity_low", "specificity_high"):
        assert float(row[column]) == pytest.approx(50 / 60)
    answer = json.loads(everything.read_text())["answers"]["net"]
    assert answer["specificity"]["a"] == pytest.approx(50 / 60)
    assert answer["intervals"]["specificity"]["a"] == pytest.approx([50 / 60, 50 / 60])


@pytest.mark.usefixtures("specificity")
def test_compare_has_its_column_too(
    make_store: Callable[..., Path], make_truth: Callable[..., Path], tmp_path: Path
) -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[:4] = 1
    path = make_store("s", np.ones_like(truth), one=truth, two=np.ones_like(truth))
    config = EvaluateConfig(truth=str(make_truth("s", truth)))
    context = RunContext(RunConfig(runs=str(tmp_path / "runs")))
    found = compare.run(EvaluateInputs([path]), CompareOptions((), config), context)
    assert [r["specificity"] for r in rows_of(found)] == [1, 0]
    assert "specificity" in compare.text_table(found).splitlines()[0]
    write_comparison(found, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        assert [float(r["specificity"]) for r in csv.DictReader(file)] == [1, 0]


def test_two_metrics_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "double.py").write_text(SPECIFICITY.replace('Metric("specificity"', 'Metric("dice"'))
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wsipipe.evaluate.metrics.double", raising=False)
    with pytest.raises(ValueError, match="dice defined twice"):
        metrics.all_metrics()
