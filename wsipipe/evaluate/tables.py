"""The scores of an evaluation as a table for people and as CSV for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsipipe.evaluate.detections import write_detections
from wsipipe.evaluate.report import as_json
from wsipipe.evaluate.result import Evaluation, Spread
from wsipipe.runtime.atomic import write_csv, write_json
from wsipipe.runtime.table import aligned

SCORES = ("iou", "dice", "precision", "recall")
_HEADS = ("answer", "class", "IoU", "Dice", "precision", "recall")
_ENDS = ("iou_low", "iou_high", "dice_low", "dice_high")


def text_table(evaluation: Evaluation, width: int = 0) -> str:
    """A table, a row per answer and class; then the other scores, and which pixels counted.

    `width`: columns of the terminal; 0: no limit.
    """
    spread = any(s.intervals for s in evaluation.spread.values())
    rows = [[*_HEADS, "Dice 95 %"] if spread else list(_HEADS)]
    for r in _rows(evaluation):
        cells = [r["answer"], r["class"], *(shown(r[s]) for s in SCORES)]
        rows.append([*cells, _between(r["dice_low"], r["dice_high"])] if spread else cells)
    name, pooled = next(iter(evaluation.answers.items()))
    lines = [
        *aligned(rows, width=width),
        f"{name}: mIoU {shown(pooled.miou)} ({shown(pooled.miou_named)} without class 0), "
        f"frequency-weighted IoU {shown(pooled.frequency_weighted_iou)} "
        f"(by inverse logarithm, as HistoSegNet: {shown(pooled.inverse_log_weighted_iou)}), "
        f"pixel accuracy {shown(pooled.accuracy)}",
        *_spread_lines(evaluation),
        *_score_lines(evaluation),
        *evaluation.note.replace("; ", "\n  ").splitlines(),
    ]
    return "\n".join(lines)


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write evaluation.csv (a row per answer and class), evaluate.json (everything) and, if there are, detections.csv.

    Returns their paths. An undefined score is an empty cell and null; `report` documents the keys of the JSON.
    """
    table, everything = folder / "evaluation.csv", folder / "evaluate.json"
    blank = [{k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in _rows(evaluation)]
    write_csv(table, ("answer", "class", *SCORES, *_ENDS, "truth_px", "answer_px"), blank)
    write_json(everything, as_json(evaluation))
    if not evaluation.detections:
        return [table, everything]
    write_detections(folder / "detections.csv", evaluation.detections)
    return [table, everything, folder / "detections.csv"]


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """The scores of every named class of the judged answer; of a trivial one, those of the classes that it gives."""
    for answer, confusion in evaluation.answers.items():
        scores = {s: getattr(confusion, s) for s in SCORES}
        ends = evaluation.spread.get(answer, Spread()).intervals
        for k, name in evaluation.of_interest(answer):
            yield {
                "answer": answer,
                "class": name,
                **{s: float(values[k]) for s, values in scores.items()},
                **{f"{s}_{e}": float(ends[s][j][k]) if s in ends else math.nan for s, e, j in _END_KEYS},
                "truth_px": int(confusion.truth_px[k]),
                "answer_px": int(confusion.matrix[:, k].sum()),
            }


_END_KEYS = tuple((s, e, j) for s in ("iou", "dice") for j, e in enumerate(("low", "high")))


def _spread_lines(evaluation: Evaluation) -> Iterator[str]:
    """Intervals over all classes, or the values of few groups."""
    name = next(iter(evaluation.answers))
    spread = evaluation.spread.get(name, Spread())
    if spread.intervals:
        text = ", ".join(
            f"{title} {_between(*(float(v) for v in spread.intervals[score]))}"
            for score, title in (("miou", "mIoU"), ("miou_named", "without class 0"), ("accuracy", "accuracy"))
        )
        yield f"{name}, 95 % by resampling {_groups(evaluation)}: {text}"
    elif spread.by_group:
        yield f"{_groups(evaluation)} are too few for an interval; Dice of each:"
        for group, scores in spread.by_group.items():
            values = ", ".join(f"{n} {shown(float(scores['dice'][k]))}" for k, n in enumerate(evaluation.classes, 1))
            yield f"  {group}: {values}"


def _groups(evaluation: Evaluation) -> str:
    number = len(set(evaluation.groups))
    return f"{number} {'slides' if set(evaluation.groups) <= set(evaluation.slides) else 'patients'}"


def _score_lines(evaluation: Evaluation) -> Iterator[str]:
    """What the scores give: slides, lesions, calibration."""
    level = evaluation.slide_level
    if level is not None:
        yield f"slide AUC (truth: {level.source}): " + ", ".join(
            f"{n} {shown(float(level.auc[k]))}"
            + (f" ({_between(*(float(v[k]) for v in level.intervals))})" if level.intervals else "")
            for k, n in enumerate(evaluation.classes)
        )
    for name, f in (evaluation.froc or {}).items():
        at = ", ".join(f"{s:.3f} at {x:g}" for x, s in f.at.items()) if f.lesions else "-"
        yield (
            f"FROC {name}: {shown(f.score)} ({at} false positives a slide; {f.lesions} lesions, "
            f"{f.itc} too small to count" + (f"; 95 % {_between(*f.interval)})" if f.interval else ")")
        )
    if evaluation.pixel_calibration is not None and level is not None:
        pixel, slide = evaluation.pixel_calibration, level.calibration()
        yield "calibration error, 15 bins: " + ", ".join(
            f"{n} {shown(p.error)} (pixels of tissue) {shown(s.error)} (slides)"
            for n, p, s in zip(evaluation.classes, pixel, slide, strict=True)
        )
    elif level is None:
        yield "no scores of this name in the stores: no slide AUC and no calibration" + (
            "" if evaluation.froc else ", no FROC"
        )


def _between(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.3f}..{high:.3f}"


def shown(value: float) -> str:
    """A score with three decimals, a dash where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.3f}"
