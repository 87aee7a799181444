"""Several masks or maps of the same slides side by side: one line each, and how far they agree with each other."""

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
from wsipipe.evaluate.metrics import count_pairs, dice_of
from wsipipe.evaluate.result import Evaluation
from wsipipe.evaluate.tables import shown
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE, Tissue
from wsipipe.runtime.atomic import write_csv
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.progress import Progress
from wsipipe.runtime.table import aligned
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows

COLUMNS = ("masks", "class", "dice", "dice_low", "dice_high", "iou", "precision", "recall", "slide_auc", "painted")


@dataclass(frozen=True)
class Comparison:
    """What several answers say of the same slides.

    paths: of the compared stores. names: of the answers. classes: what they paint. evaluations: by name, empty without
    a truth. counts: int64 [names, K + 2], pixels of tissue with each mask value (0..K, then 255). agreement: Dice of
    each class, float64 [C], between the answers of every pair of names, over the tissue that both speak of.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    evaluations: Mapping[str, Evaluation]
    counts: NDArray[np.int64]
    agreement: Mapping[tuple[str, str], NDArray[np.float64]]

    @property
    def exit_code(self) -> int:
        """0 unless stores failed beyond what is allowed."""
        return max((e.report.exit_code for e in self.evaluations.values()), default=0)


@dataclass(frozen=True)
class CompareOptions:
    """The masks to compare (none: those that every store has), and how each is evaluated if there is a truth."""

    masks: Sequence[str] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def run(inputs: EvaluateInputs, options: CompareOptions, context: RunContext) -> Comparison:
    """Compare masks over the stores, each evaluated as by `evaluate.stage` if there is a truth.

    A split leaves the other slides out everywhere. ConfigError if there are no two answers, or they name other classes;
    StoreError for a store that lacks one.
    """
    config = options.evaluate
    stores, _ = select([SlideStore(p) for p in inputs.stores], inputs.labels, config.split)
    paths = tuple(s.path for s in stores)
    common = common_names(stores)
    names = tuple(dict.fromkeys(options.masks)) or common
    check(
        len(names) >= 2,
        f"compare: two answers are wanted, not {', '.join(names) or 'none'}; every store has "
        f"{', '.join(common) or 'no masks'}: name two of them with --masks a,b",
    )
    classes = {tuple(s.attributes("labels", n)["classes"]) for s in stores for n in names}
    if len(classes) > 1:
        raise ConfigError(
            f"compare: the masks name different classes: {sorted(classes)}; compare those that name the same"
        )
    (agreed,) = classes
    evaluations = {}
    if config.truth:
        chosen = EvaluateInputs(paths, inputs.labels)
        evaluations = {n: stage.run(chosen, replace(config, masks=n), context) for n in names}
    counts, pairs = _counts(stores, names, len(agreed), context.progress)
    return Comparison(paths, names, agreed, evaluations, counts, {p: dice_of(m) for p, m in pairs.items()})


def common_names(stores: Sequence[SlideStore]) -> tuple[str, ...]:
    """Masks that every store has, besides the tissue."""
    having = [set(s.names("labels")) - {"tissue"} for s in stores]
    return tuple(sorted(set.intersection(*having))) if having else ()


def _counts(
    stores: Sequence[SlideStore], names: Sequence[str], classes: int, progress: Progress
) -> tuple[NDArray[np.int64], dict[tuple[str, str], NDArray[np.int64]]]:
    """Pixels of each mask value on tissue, int64 [names, K + 2]; and of each pair of answers, int64 [C, C]."""
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
    """A row for each answer and class, keys as in `COLUMNS`; nan where there is no truth, no interval or no score."""
    rows = []
    for i, name in enumerate(comparison.names):
        evaluation = comparison.evaluations.get(name)
        for k, of_class in enumerate(comparison.classes, 1):
            row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan)
            row |= {"masks": name, "class": of_class}
            row["painted"] = comparison.counts[i, k] / max(1, comparison.counts[i].sum())
            if evaluation:
                confusion, level = evaluation.answers[name], evaluation.slide_level
                row |= {s: float(getattr(confusion, s)[k]) for s in ("dice", "iou", "precision", "recall")}
                row["slide_auc"] = float(level.auc[k - 1]) if level else math.nan
                if ends := evaluation.spread[name].intervals.get("dice"):
                    row |= {"dice_low": float(ends[0][k]), "dice_high": float(ends[1][k])}
            rows.append(row)
    return rows


def text_table(comparison: Comparison, width: int = 0) -> str:
    """A table, a row per answer and class; then how far the answers agree.

    `width`: columns of the terminal; 0: no limit.
    """
    heads = ("masks", "class", "Dice", "low", "high", "IoU", "precision", "recall", "slide AUC", "painted")
    keys = COLUMNS if comparison.evaluations else ("masks", "class", "painted")
    chosen = [heads[COLUMNS.index(k)] for k in keys]
    cells = [[r[k] if isinstance(r[k], str) else shown(r[k]) for k in keys] for r in rows_of(comparison)]
    lines = aligned([chosen, *cells], width=width)
    lines.append(
        "painted: share of the tissue; uncertain (255): "
        + ", ".join(
            f"{n} {shown(c[-1] / max(1, c.sum()))}" for n, c in zip(comparison.names, comparison.counts, strict=True)
        )
    )
    for (a, b), dice in comparison.agreement.items():
        lines.append(
            f"{a} and {b} agree: Dice "
            + ", ".join(f"{c} {shown(float(d))}" for c, d in zip(comparison.classes, dice[1:], strict=True))
        )
    if comparison.evaluations:
        lines += next(iter(comparison.evaluations.values())).note.replace("; ", "\n  ").splitlines()
    return "\n".join(lines)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the rows as CSV; what is not known is an empty cell."""
    blank = [
        {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in rows_of(comparison)
    ]
    write_csv(path, COLUMNS, blank)
