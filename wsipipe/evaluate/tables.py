"""The scores of an evaluation as a table for people and as CSV and JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsipipe.evaluate.judge import Evaluation
from wsipipe.evaluate.metrics import Confusion
from wsipipe.runtime import write_csv, write_json

SCORES = ("iou", "dice", "precision", "recall")
_HEADS = ("answer", "class", "IoU", "Dice", "precision", "recall")


def text_table(evaluation: Evaluation) -> str:
    """Aligned columns, a line per answer and class; then the scores over all classes, and which pixels counted."""
    rows = [list(_HEADS)]
    rows += [[r["answer"], r["class"], *(shown(r[s]) for s in SCORES)] for r in _rows(evaluation)]
    name, pooled = next(iter(evaluation.answers.items()))
    summary = (
        f"{name}: mIoU {shown(pooled.miou)} ({shown(pooled.miou_named)} without class 0), "
        f"frequency-weighted IoU {shown(pooled.frequency_weighted_iou)}, pixel accuracy {shown(pooled.accuracy)}"
    )
    return "\n".join([*aligned(rows), summary, evaluation.note])


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write evaluation.csv (a row per answer and class) and evaluation.json (everything); returns their paths.

    An undefined score is an empty cell and null.
    """
    table, everything = folder / "evaluation.csv", folder / "evaluation.json"
    blank = [{k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in _rows(evaluation)]
    write_csv(table, ("answer", "class", *SCORES, "truth_px", "answer_px"), blank)
    write_json(
        everything,
        {
            "classes": list(evaluation.classes),
            "slides": list(evaluation.slides),
            "failed": evaluation.report.of("failed"),
            "note": evaluation.note,
            "answers": {name: _as_json(confusion) for name, confusion in evaluation.answers.items()},
        },
    )
    return [table, everything]


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """The scores of every named class of every answer."""
    for answer, confusion in evaluation.answers.items():
        scores = {s: getattr(confusion, s) for s in SCORES}
        for k, name in enumerate(confusion.names, start=1):
            yield {
                "answer": answer,
                "class": name,
                **{s: float(values[k]) for s, values in scores.items()},
                "truth_px": int(confusion.truth_px[k]),
                "answer_px": int(confusion.matrix[:, k].sum()),
            }


def _as_json(confusion: Confusion) -> dict[str, Any]:
    """Every score and count of one answer; lists are in mask order, class 0 first."""
    return {
        "classes": list(confusion.names),
        **{s: [_or_none(float(v)) for v in getattr(confusion, s)] for s in SCORES},
        "miou": _or_none(confusion.miou),
        "miou_without_class_0": _or_none(confusion.miou_named),
        "frequency_weighted_iou": _or_none(confusion.frequency_weighted_iou),
        "inverse_log_weighted_iou": _or_none(confusion.inverse_log_weighted_iou),
        "pixel_accuracy": _or_none(confusion.accuracy),
        "pixels": confusion.pixels,
        "not_predicted_px": confusion.unpredicted,
        "confusion_truth_by_answer": confusion.matrix.tolist(),
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def shown(value: float) -> str:
    """A score with three decimals, a dash where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells padded to their columns, two of text and the rest of numbers, with a rule below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return lines
