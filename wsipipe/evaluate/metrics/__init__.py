"""Pixel metrics: functions of a confusion matrix. This folder is the registry: a new metric is a row or a new module.

To add a metric, add a row to `METRICS` of a module here, or drop a module with

    METRICS: tuple[Metric, ...]

into this folder. Nothing else changes: the printed tables, evaluation.csv, evaluate.json, the bootstrap intervals and
`wsipipe compare` take their columns from these rows. For example

    METRICS = (Metric("specificity", "specificity", specificity_of),)

where `specificity_of` maps counts [.., C, C] (truth, answer; class 0 first) to values [.., C], nan where undefined.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from wsipipe.evaluate.confusion import Counts, Floats

FIRST = "overlap"
"""The module whose metrics come first; the other modules follow in alphabetical order."""


@dataclass(frozen=True)
class Metric:
    """A score of an answer.

    name: key in JSON and column in CSV. title: column in printed tables. of: counts [.., C, C] (truth, answer) ->
    float64 [.., C], a value per class, or [..] if the metric is `pooled` over all classes; nan where undefined.
    """

    name: str
    title: str
    of: Callable[[Counts], Floats]
    pooled: bool = False


def all_metrics() -> tuple[Metric, ...]:
    """The metrics of all modules of this folder, in the order of columns. ValueError if two have one name."""
    modules = sorted((m.name for m in pkgutil.iter_modules(__path__)), key=lambda name: (name != FIRST, name))
    found = [m for name in modules for m in importlib.import_module(f"{__name__}.{name}").METRICS]
    names = [m.name for m in found]
    if doubles := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"evaluate.metrics: {', '.join(doubles)} defined twice; rename one")
    return tuple(found)


def per_class() -> tuple[Metric, ...]:
    """The metrics with a value per class."""
    return tuple(m for m in all_metrics() if not m.pooled)


def pooled() -> tuple[Metric, ...]:
    """The metrics with one value over all classes."""
    return tuple(m for m in all_metrics() if m.pooled)


def scores_of(matrix: Counts) -> dict[str, Floats]:
    """Every metric by name, of counts [.., C, C] (truth, answer): [.., C] per class, [..] pooled."""
    return {m.name: m.of(matrix) for m in all_metrics()}
