"""The files of an evaluation: evaluation.csv, evaluate.json (keys: see `json_output`) and detections.csv."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsipipe.evaluate.detections import write_detections
from wsipipe.evaluate.evaluation import Evaluation
from wsipipe.evaluate.json_output import as_json
from wsipipe.evaluate.rows import blank_undefined, columns, metric_row
from wsipipe.runtime.atomic import write_csv, write_json


def write_files(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write evaluation.csv (a row per answer and class), evaluate.json (everything) and detections.csv.

    Returns their paths; without detections there are two. An undefined value is an empty cell or null.
    """
    table, everything = folder / "evaluation.csv", folder / "evaluate.json"
    write_csv(table, ("answer", "class", *columns(), "truth_px", "answer_px"), blank_undefined(_rows(evaluation)))
    write_json(everything, as_json(evaluation))
    if not evaluation.detections:
        return [table, everything]
    write_detections(folder / "detections.csv", evaluation.detections)
    return [table, everything, folder / "detections.csv"]


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """A row per answer and class that it is about."""
    for answer, confusion in evaluation.answers.items():
        for k, name in evaluation.of_interest(answer):
            pixels = {"truth_px": int(confusion.truth_px[k]), "answer_px": int(confusion.matrix[:, k].sum())}
            yield {"answer": answer, "class": name, **metric_row(evaluation, answer, k), **pixels}
