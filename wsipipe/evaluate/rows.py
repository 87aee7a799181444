"""Rows of metrics for CSV files and printed tables: their columns are the metrics per class and their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wsipipe.evaluate.evaluation import Evaluation
from wsipipe.evaluate.metrics import per_class


def columns() -> tuple[str, ...]:
    """The metrics per class, then the two ends of the 95 % interval of each: dice, .., dice_low, dice_high, .."""
    names = [m.name for m in per_class()]
    return (*names, *(f"{n}_{end}" for n in names for end in ("low", "high")))


def metric_row(evaluation: Evaluation, answer: str, k: int) -> dict[str, float]:
    """The values of `columns` of an answer for mask value `k`; nan where undefined."""
    scores, intervals = evaluation.metrics(answer), evaluation.intervals(answer)
    row = dict.fromkeys(columns(), math.nan)
    for metric in per_class():
        row[metric.name] = float(scores[metric.name][k])
        if metric.name in intervals:
            low, high = intervals[metric.name]
            row |= {f"{metric.name}_low": float(low[k]), f"{metric.name}_high": float(high[k])}
    return row


def blank_undefined(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with an empty cell in place of nan, for CSV files."""
    return ({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)


def shown(value: float) -> str:
    """A value with three decimals, a dash where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def shown_interval(low: float, high: float) -> str:
    """An interval with three decimals, a dash where it is undefined."""
    return "-" if math.isnan(low) else f"{low:.3f}..{high:.3f}"
