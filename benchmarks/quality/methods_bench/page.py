"""The table of a data set: from the records of steps and the judgements to rows, and from rows to markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from benchmarks.quality.methods_bench.dataset import DataSet
from benchmarks.quality.methods_bench.plan import Plan, run_name
from benchmarks.quality.methods_bench.score import Judged, mean_scores, pooled, read_judged, scores
from benchmarks.quality.methods_bench.steps import Records

SCORES = ("dice", "iou", "precision", "recall", "miou", "accuracy")
HEAD = (
    "answer",
    "patients",
    "Dice",
    "IoU",
    "precision",
    "recall",
    "mIoU",
    "accuracy",
    "slide AUC",
    "weak / supervised",
)
HEAD += ("min", "MiB")


KINDS = (
    ("raw scores at 0.5", "-raw", "train"),
    ("pseudo-masks", "", "train"),
    ("raw scores at 0.5", "-raw", "test"),
    ("pseudo-masks", "", "test"),
    ("segmenter", "-segmenter", "test"),
)
"""What is judged of a method: title, end of the name of its masks, and whose patients."""

EMPTY = "empty mask"

TRIVIAL = {"all tissue": "all tissue is {}", "label copied to all tissue": "all tissue of slides with {}"}
"""Trivial answers, each of one class, as `wsipipe evaluate` calls them."""

UNINFORMED = (EMPTY, "all tissue")
"""Trivial answers that know nothing of a test slide; the bound has to be better than these."""


@dataclass
class Row:
    """One line: the scores of every seed, and what they cost.

    split: whose patients were judged. seeds: of each seed, the scores over all folds. minutes: of one fold and seed,
    all steps that lead to it together. peak_mib: the highest of them. ends: the 95 % interval of Dice, if there is one
    fold and one seed of enough patients. aucs: of each seed and fold. ratios: weak over supervised Dice, a seed each.
    """

    answer: str
    split: str
    seeds: list[dict[str, float]] = field(default_factory=list)
    minutes: float = math.nan
    peak_mib: float = math.nan
    aucs: list[float] = field(default_factory=list)
    ends: tuple[float, float] | None = None
    ratios: list[float] = field(default_factory=list)
    note: str = ""


def rows_of(data: DataSet, plans: Sequence[Plan]) -> list[Row]:
    """All rows of a data set, as far as their judgements are there: trivial answers, methods, and the bound last."""
    bound = _row("supervised by pixels (same network, start and budget)", "test", data, plans, _supervised)
    rows = [r for split in ("train", "test") for r in _trivial_rows(data, plans, split)]
    for arm in data.arms:
        for title, end, split in KINDS:

            def names(seed: int, arm: str = arm.name, end: str = end) -> tuple[str, tuple[str, ...]]:
                run = f"{arm}-s{seed}"
                last = (f"{run}-segmenter/train", f"{run}-segmenter/map") if end == "-segmenter" else ()
                return run + end, (f"encoder-s{seed}", f"{run}/fit", *last)

            rows.append(_row(f"{arm.name}: {title}", split, data, plans, names))
    floor = max((r.seeds[0]["dice"] for r in rows if r.split == "test" and r.answer in UNINFORMED), default=0.0)
    learnt = all(s["dice"] > floor for s in bound.seeds)
    if not learnt:
        bound.note = "no better than all tissue: it was trained too briefly to be a bound"
    for row in rows:
        if row.split == "test" and row.answer.partition(": ")[0] in {a.name for a in data.arms}:
            row.ratios = [a["dice"] / b["dice"] for a, b in zip(row.seeds, bound.seeds, strict=False)] if learnt else []
    return [*rows, bound]


def _supervised(seed: int) -> tuple[str, tuple[str, ...]]:
    name = f"supervised-s{seed}"
    return name, ("supervised/import", f"{name}/train", f"{name}/map")


def _row(
    answer: str,
    split: str,
    data: DataSet,
    plans: Sequence[Plan],
    names: Callable[[int], tuple[str, tuple[str, ...]]],
) -> Row:
    """A row; `names(seed)` gives the name of the masks and of the steps that made them."""
    row = Row(answer, split)
    costs: list[list[Mapping[str, float]]] = []
    for seed in range(data.seeds):
        labels, steps = names(seed)
        judged = [j for p in plans if (j := _judged(p, split, labels))]
        if len(judged) < len(plans):
            row.note = f"{len(plans) - len(judged)} of {len(plans)} folds of seed {seed} are missing"
            continue
        row.seeds.append(scores(pooled(j.answers[j.own] for j in judged)))
        row.aucs += [j.auc for j in judged if j.auc is not None]
        row.ends = judged[0].dice_ends if len(judged) == 1 and data.seeds == 1 else None
        for plan in plans:
            records = [Records(plan.place.records).read(plan.name(s)) for s in steps]
            costs.append([r for r in records if r])
    if costs and all(costs):
        row.minutes = mean(sum(r["seconds"] for r in records) for records in costs) / 60
        row.peak_mib = max(r["peak_mib"] for records in costs for r in records)
    return row


def _judged(plan: Plan, split: str, labels: str) -> Judged | None:
    """A judgement, if its step was run to the end."""
    done = Records(plan.place.records).read(plan.name("judge", split, labels))
    return read_judged(plan.place.judged / split / labels) if done else None


def _trivial_rows(data: DataSet, plans: Sequence[Plan], split: str) -> list[Row]:
    """Answers that need no learning; they are judged over the same pixels as the first method."""
    first = run_name(data.arms[0], 0)
    judged = [j for p in plans if (j := _judged(p, split, first))]
    if len(judged) < len(plans):
        return []
    rows = [Row(EMPTY, split, [scores(pooled(j.answers["empty"] for j in judged))])]
    for title, name in TRIVIAL.items():
        of_class = [scores(pooled(j.answers[name.format(c)] for j in judged), k) for k, c in enumerate(data.classes, 1)]
        rows.append(Row(title, split, [mean_scores(of_class)]))
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    return lines + [_line(_cells(r)) for r in rows]


def _cells(row: Row) -> list[str]:
    if not row.seeds:
        return [row.answer, row.split, f"not run: {row.note}" if row.note else "not run", *[""] * (len(HEAD) - 3)]
    values = [_spread([s[name] for s in row.seeds]) for name in SCORES]
    values[0] += f" [{row.ends[0]:.3f}, {row.ends[1]:.3f}]" if row.ends else ""
    return [
        row.answer + (f" ({row.note})" if row.note else ""),
        row.split,
        *values,
        _spread(row.aucs),
        _spread(row.ratios),
        "" if math.isnan(row.minutes) else f"{row.minutes:.1f}",
        "" if math.isnan(row.peak_mib) else f"{row.peak_mib:.0f}",
    ]


def _spread(values: Sequence[float]) -> str:
    """The mean, with the lowest and highest of several."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return ""
    around = f" ({min(known):.3f}-{max(known):.3f})" if len(known) > 1 else ""
    return f"{mean(known):.3f}{around}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(c.replace("|", "/") for c in cells) + " |"


def section(data: DataSet, plans: Sequence[Plan]) -> list[str]:
    """The part of the page that is about one data set."""
    folds = ", ".join(
        f"{f.number}" + (f" (test patients {', '.join(f.test_patients)})" if f.test_patients else "")
        for f in data.folds
    )
    seeds = f"{data.seeds} seed{'s' if data.seeds > 1 else ''}"
    lines = ["", f"## {data.name}: {data.values['title']}", "", f"Folds pooled: {folds}; {seeds}.", ""]
    lines += table(rows_of(data, plans))
    return [*lines, "", *(f"- {n}" for n in data.values.get("notes") or ())]
