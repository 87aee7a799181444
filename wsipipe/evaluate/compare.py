"""The compare command: several masks or maps of the same slides, the metrics of each, and how well they agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.config.options import EvaluateConfig
from wsipipe.errors import ConfigError, check
from wsipipe.evaluate import stage
from wsipipe.evaluate.cohort import EvaluateInputs, select
from wsipipe.evaluate.confusion import count_pairs
from wsipipe.evaluate.evaluation import Evaluation
from wsipipe.evaluate.metrics import per_class
from wsipipe.evaluate.metrics.overlap import dice_of
from wsipipe.evaluate.rows import blank_undefined, columns, metric_row, shown
from wsipipe.evaluate.text import interval_block
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE, Tissue
from wsipipe.runtime.atomic import write_csv
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.progress import Progress
from wsipipe.runtime.table import aligned
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows


@dataclass(frozen=True)
class Comparison:
    """Several masks of the same slides.

    paths: the compared stores. names: the masks. classes: their classes. evaluations: by name, empty without a truth.
    counts: int64 [names, K + 2], tissue px of each mask value (0..K, then 255). agreement: Dice per class, float64 [C],
    between the masks of every pair of names, over the tissue where neither is 255.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    evaluations: Mapping[str, Evaluation]
    counts: NDArray[np.int64]
    agreement: Mapping[tuple[str, str], NDArray[np.float64]]

    @property
    def exit_code(self) -> int:
        """0 unless more stores failed than allowed."""
        return max((e.report.exit_code for e in self.evaluations.values()), default=0)

    def share(self, name: str) -> NDArray[np.float64]:
        """Fraction of the tissue of each mask value (0..K, then 255): float64 [K + 2]."""
        counts = self.counts[self.names.index(name)]
        return np.asarray(counts / max(1, counts.sum()), np.float64)


@dataclass(frozen=True)
class CompareOptions:
    """The masks to compare (default: those that every store has), and how each is evaluated if there is a truth."""

    masks: Sequence[str] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def run(inputs: EvaluateInputs, options: CompareOptions, context: RunContext) -> Comparison:
    """Compare masks over the stores of the split; with a truth, each is evaluated as by `evaluate.stage`.

    Raises ConfigError for fewer than two masks or different classes; StoreError for a store that lacks one.
    """
    config = options.evaluate
    stores, _ = select([SlideStore(p) for p in inputs.stores], inputs.labels, config.split)
    paths = tuple(s.path for s in stores)
    names = _names(stores, options.masks)
    classes = {tuple(s.attributes("labels", n)["classes"]) for s in stores for n in names}
    if len(classes) > 1:
        found = "; ".join(sorted(", ".join(c) for c in classes))
        raise ConfigError(f"compare: the masks have different classes ({found}); compare masks of the same classes")
    (agreed,) = classes
    evaluations = {}
    if config.truth:
        chosen = EvaluateInputs(paths, inputs.labels)
        evaluations = {n: stage.run(chosen, replace(config, masks=n), context) for n in names}
    counts, pairs = _counts(stores, names, len(agreed), context.progress)
    return Comparison(paths, names, agreed, evaluations, counts, {p: dice_of(m) for p, m in pairs.items()})


def _names(stores: Sequence[SlideStore], wanted: Sequence[str]) -> tuple[str, ...]:
    """The `wanted` masks, or those that every store has; ConfigError if there are fewer than two."""
    common = common_names(stores)
    names = tuple(dict.fromkeys(wanted)) or common
    check(
        len(names) >= 2,
        f"compare: needs two or more masks, not {', '.join(names) or 'none'}; every store has "
        f"{', '.join(common) or 'no masks'}: name them with --masks a,b",
    )
    return names


def common_names(stores: Sequence[SlideStore]) -> tuple[str, ...]:
    """Masks that every store has, without the tissue mask."""
    having = [set(s.names("labels")) - {"tissue"} for s in stores]
    return tuple(sorted(set.intersection(*having))) if having else ()


def _counts(
    stores: Sequence[SlideStore], names: Sequence[str], classes: int, progress: Progress
) -> tuple[NDArray[np.int64], dict[tuple[str, str], NDArray[np.int64]]]:
    """Tissue px of each mask value, int64 [names, K + 2]; and the confusion of each pair of masks, int64 [C, C]."""
    counts = np.zeros((len(names), classes + 2), np.int64)
    pairs = {p: np.zeros((classes + 1, classes + 1), np.int64) for p in itertools.combinations(names, 2)}
    for i, store in enumerate(stores):
        progress("compare", i, len(stores), store.slide_id)
        for _, window in shard_windows(store.labels("tissue").spec):
            tissue = store.labels("tissue").read(window) == Tissue.TISSUE
            if tissue.any():
                masks = {n: _on_tissue(store, n, window, tissue) for n in names}
                for k, mask in enumerate(masks.values()):
                    found = np.bincount(mask, minlength=256)
                    counts[k] += np.append(found[: classes + 1], found[IGNORE])
                for a, b in pairs:
                    both = (masks[a] != IGNORE) & (masks[b] != IGNORE)
                    pairs[a, b] += count_pairs(masks[a][both], masks[b][both], (classes + 1, classes + 1))
    progress("compare", len(stores), len(stores))
    return counts, pairs


def _on_tissue(store: SlideStore, name: str, window: Window, tissue: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.asarray(store.labels(name).read(window)[tissue], np.uint8)


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per mask and class: metrics, slide AUC, share of the tissue; nan without a truth, groups or scores."""
    rows = []
    for name in comparison.names:
        evaluation = comparison.evaluations.get(name)
        for k, of_class in enumerate(comparison.classes, 1):
            row: dict[str, Any] = {"masks": name, "class": of_class, **dict.fromkeys(columns(), math.nan)}
            row |= {"slide_auc": math.nan, "share_of_tissue": float(comparison.share(name)[k])}
            if evaluation:
                row |= metric_row(evaluation, name, k)
                level = evaluation.slide_level
                row["slide_auc"] = float(level.auc[k - 1]) if level else math.nan
            rows.append(row)
    return rows


def text_table(comparison: Comparison, width: int = 0) -> str:
    """Tables: metrics and intervals of each mask (with a truth), shares of the tissue, agreement of every pair.

    `width`: columns of the terminal; 0: no limit.
    """
    evaluations = list(comparison.evaluations.values())
    blocks = [aligned(_metric_table(comparison), width=width)] if evaluations else []
    blocks += [interval_block(e, width) for e in evaluations if e.intervals(e.name)]
    blocks += [
        aligned(table, text_columns=1, width=width) for table in (_share_table(comparison), _agreement(comparison))
    ]
    if evaluations:
        blocks.append(evaluations[0].coverage.lines)
    return "\n\n".join("\n".join(block) for block in blocks)


def _metric_table(comparison: Comparison) -> list[list[str]]:
    keys = [*(m.name for m in per_class()), "slide_auc"]
    rows = [["masks", "class", *(m.title for m in per_class()), "slide AUC"]]
    return rows + [[r["masks"], r["class"], *(shown(r[k]) for k in keys)] for r in rows_of(comparison)]


def _share_table(comparison: Comparison) -> list[list[str]]:
    rows = [["share of tissue", *comparison.classes, "ignore (255)"]]
    return rows + [[n, *(shown(float(v)) for v in comparison.share(n)[1:])] for n in comparison.names]


def _agreement(comparison: Comparison) -> list[list[str]]:
    rows = [["agreement (Dice)", *comparison.classes]]
    pairs = comparison.agreement.items()
    return rows + [[f"{a} and {b}", *(shown(float(d)) for d in dice[1:])] for (a, b), dice in pairs]


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the rows as CSV; an undefined value is an empty cell."""
    names = ("masks", "class", *columns(), "slide_auc", "share_of_tissue")
    write_csv(path, names, blank_undefined(rows_of(comparison)))
