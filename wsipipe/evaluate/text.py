"""An evaluation as tables for people, for a terminal of 80 columns."""

from __future__ import annotations

import math

from wsipipe.evaluate.bootstrap import LEAST_GROUPS
from wsipipe.evaluate.calibration import BINS
from wsipipe.evaluate.evaluation import Evaluation, Spread, trivial_answers
from wsipipe.evaluate.froc import FALSE_POSITIVES, ITC_UM
from wsipipe.evaluate.metrics import per_class, pooled
from wsipipe.evaluate.rows import metric_row, shown, shown_interval
from wsipipe.runtime.table import aligned

Table = list[list[str]]
"""Rows of cells; the first row is the header."""


def text_table(evaluation: Evaluation, width: int = 0) -> str:
    """Tables of pixels, groups, slides and lesions, then which pixels were scored; blank lines between them.

    `width`: columns of the terminal; 0: no limit.
    """
    blocks = [aligned(_pixel_table(evaluation), width=width)]
    if evaluation.intervals(evaluation.name):
        blocks.append(interval_block(evaluation, width))
    blocks += [_pooled_block(evaluation, width), _group_block(evaluation, width)]
    blocks += [_slide_block(evaluation, width), _lesion_block(evaluation, width), list(evaluation.coverage.lines)]
    text = "\n\n".join("\n".join(block) for block in blocks if block)
    return f"{text}\n-: undefined" if any("-" in line.split() for line in text.splitlines()) else text


def interval_block(evaluation: Evaluation, width: int = 0) -> list[str]:
    """The 95 % intervals of the metrics per class of the evaluated masks, with a title."""
    rows = [["class", *(m.title for m in per_class())]]
    for k, name in enumerate(evaluation.classes, start=1):
        row = metric_row(evaluation, evaluation.name, k)
        rows.append([name, *(shown_interval(row[f"{m.name}_low"], row[f"{m.name}_high"]) for m in per_class())])
    title = f"{evaluation.name}: 95 % intervals, bootstrap over {evaluation.grouped_by}"
    return [title, *aligned(rows, text_columns=1, width=width)]


def _pixel_table(evaluation: Evaluation) -> Table:
    """A row per answer and class."""
    rows = [["answer", "class", *(m.title for m in per_class())]]
    for answer in evaluation.answers:
        for k, name in evaluation.of_interest(answer):
            row = metric_row(evaluation, answer, k)
            rows.append([_short(answer, name), name, *(shown(row[m.name]) for m in per_class())])
    return rows


def _short(answer: str, name: str) -> str:
    """An answer beside the column of its class."""
    short = dict(zip(trivial_answers(name), ("all tissue", "all tissue of positive slides"), strict=True))
    return short.get(answer, answer)


def _pooled_block(evaluation: Evaluation, width: int) -> list[str]:
    """A row per metric over all classes."""
    scores, intervals = evaluation.metrics(), evaluation.intervals(evaluation.name)
    rows = [["metric", "value"], *([m.title, shown(float(scores[m.name]))] for m in pooled())]
    if intervals:
        ends = [shown_interval(*(float(v) for v in intervals[m.name])) for m in pooled()]
        rows = [[*row, end] for row, end in zip(rows, ["95 % interval", *ends], strict=True)]
    return [f"{evaluation.name}: all classes together", *aligned(rows, text_columns=1, width=width)]


def _group_block(evaluation: Evaluation, width: int) -> list[str]:
    """Dice per group where the groups are too few for an interval."""
    by_group = evaluation.spread.get(evaluation.name, Spread()).by_group
    if not by_group:
        return []
    rows = [[evaluation.grouped_by.split()[1].removesuffix("s"), *evaluation.classes]]
    rows += [[group, *(shown(float(v)) for v in scores["dice"][1:])] for group, scores in by_group.items()]
    title = f"{evaluation.name}: Dice of {evaluation.grouped_by}; intervals need {LEAST_GROUPS} or more"
    return [title, *aligned(rows, text_columns=1, width=width)]


def _slide_block(evaluation: Evaluation, width: int) -> list[str]:
    """Slide AUC and calibration per class."""
    level, of_pixels = evaluation.slide_level, evaluation.pixel_calibration
    if level is None or of_pixels is None:
        missing = "no slide AUC, no calibration" + ("" if evaluation.froc else ", no FROC")
        return [f"no scores of this name in the stores: {missing}"]
    ends = [shown_interval(low, high) for low, high in zip(*level.intervals, strict=True)] if level.intervals else []
    rows = [["class", "slide AUC", *(["95 % interval"] if ends else []), "ECE of pixels", "ECE of slides"]]
    for k, (name, of_slides) in enumerate(zip(evaluation.classes, level.calibration(), strict=True)):
        errors = [shown(of_pixels[k].error), shown(of_slides.error)]
        rows.append([name, shown(float(level.auc[k])), *ends[k : k + 1], *errors])
    return [
        f"{evaluation.name}: scores of slides (truth: {level.source}) and of tissue pixels",
        *aligned(rows, text_columns=1, width=width),
        f"ECE: expected calibration error, {BINS} bins",
    ]


def _lesion_block(evaluation: Evaluation, width: int) -> list[str]:
    """Sensitivity per class at each number of false positives."""
    if not evaluation.froc:
        return []
    curves = evaluation.froc
    has_ends = any(c.interval for c in curves.values())
    rows = [["class", *(f"{fp:g}" for fp in FALSE_POSITIVES), "mean", *(["95 % interval"] if has_ends else [])]]
    for name, curve in curves.items():
        ends = [shown_interval(*(curve.interval or (math.nan, math.nan)))] if has_ends else []
        rows.append([name, *map(shown, curve.at.values()), shown(curve.score), *ends])
    counts = ", ".join(f"{name} {c.lesions} ({c.itc} more below {ITC_UM:g} um)" for name, c in curves.items())
    return [
        f"{evaluation.name}: sensitivity at false positives per slide (FROC of Camelyon16)",
        *aligned(rows, text_columns=1, width=width),
        f"lesions: {counts}",
    ]
