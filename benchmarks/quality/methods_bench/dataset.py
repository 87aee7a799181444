"""Data sets of the benchmark: a YAML file each says where slides, weak labels and truth are, and how long to train.

    title: what it is, in a line               notes: [what a reader of the table has to know]
    make: [commands that draw the data of a fold]                        (optional)
    slides: pattern of slides                  hidden: [more files that weak methods must not see]
    labels: {csv: file, slide_id: column, label: column, patient_id: column, negative: [words that mean no class]};
        where no column is named, those of the product are read
    classes: [in mask order]                   truth: pattern with {slide_id}    truth_map: as of `wsipipe evaluate`
    folds: [[test patients], ..]; without it, one fold; splits that the labels name themselves stand
    draw: {values for the commands of make}
    tile, pretrain, pseudolabel, segment: {options, as in pipeline.yaml}; with pretrain, all methods start from one
        pretrained encoder a seed, but those whose own options say `pretrain: false`
    methods: {name: {method: of the product, pseudolabel: {options}, params: {of the method}}}
    take: [methods that take part unless others are asked for; default: all]
    budgets: {quick: {folds: N, seeds: N, and anything above to replace}, full: {..}}

Paths, commands and options may hold {data} (the folder given with --data), {made} (where `make` draws to), {python} and
{here} (the folder of the YAML file); commands also {fold}, {train} and {test} (patients, joined by commas) and what
`draw` defines.
"""

from __future__ import annotations

import csv
import glob
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KEYS = {
    *("title", "notes", "make", "slides", "hidden", "labels", "classes", "truth", "truth_map", "folds", "draw"),
    *("tile", "pretrain", "pseudolabel", "segment", "methods", "take", "budgets"),
}
COLUMNS = ("slide_id", "label", "x", "y", "width", "height", "patient_id", "split")


class Wrong(SystemExit):
    """Something that the user has to mend; the message says what."""


@dataclass(frozen=True)
class Arm:
    """A method as it takes part: its options of `pseudolabel` and its own parameters."""

    name: str
    method: str
    options: Mapping[str, Any]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Fold:
    """One division: its number from 1, and the test patients (empty: the labels say the split)."""

    number: int
    test_patients: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set under one budget. Texts may hold the placeholders that the module names; `fill` puts them in."""

    name: str
    values: Mapping[str, Any]
    places: Mapping[str, str]
    arms: tuple[Arm, ...]
    folds: tuple[Fold, ...]
    seeds: int
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in mask order."""
        return tuple(self.values["classes"])

    def fill(self, text: str, made: Path, **more: str) -> str:
        """`text` with the placeholders put in; {slide_id} stays unless it is given."""
        for key, value in {**self.places, "made": str(made), **more}.items():
            text = text.replace("{" + key + "}", value)
        return text

    def commands(self, fold: Fold, made: Path) -> list[list[str]]:
        """What draws the data of a fold."""
        draw = {k: str(v) for k, v in (self.values.get("draw") or {}).items()}
        all_patients = [p for f in self.values["folds"] for p in f.test_patients]
        train = ",".join(p for p in all_patients if p not in fold.test_patients)
        patients = {"fold": str(fold.number), "train": train, "test": ",".join(fold.test_patients)}
        return [
            [self.fill(word, made, **draw, **patients) for word in text.split()]
            for text in self.values.get("make") or ()
        ]

    def slides(self, made: Path) -> list[Path]:
        """The slides of a fold."""
        found = sorted(Path(p) for p in glob.glob(self.fill(self.values["slides"], made)))
        if not found:
            raise Wrong(f"{self.name}: no slides at {self.fill(self.values['slides'], made)}; is --data right?")
        return found

    def options(self, section: str, made: Path) -> dict[str, Any]:
        """The options of a section of pipeline.yaml."""
        values = self.sections[section].items()
        return {k: self.fill(v, made) if isinstance(v, str) else v for k, v in values}

    def truth(self, made: Path) -> str:
        """The truth masks, with {slide_id}."""
        return self.fill(self.values["truth"], made)

    def truth_files(self, made: Path) -> list[Path]:
        """Every file that holds pixel truth."""
        patterns = [self.truth(made).replace("{slide_id}", "*")]
        patterns += [self.fill(text, made) for text in self.values.get("hidden") or ()]
        return [Path(p) for pattern in patterns for p in sorted(glob.glob(pattern))]

    def label_rows(self, made: Path, fold: Fold) -> list[dict[str, str]]:
        """The rows of labels.csv of a fold: weak labels, patients and splits."""
        spec = self.values["labels"]
        columns = {c: spec[c] for c in COLUMNS if c in spec} or {c: c for c in COLUMNS}
        path = Path(self.fill(spec["csv"], made))
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = list(csv.DictReader(f))
        out = []
        for row in rows:
            kept = {c: (row.get(columns.get(c, "")) or "").strip() for c in COLUMNS}
            if kept["label"] in (spec.get("negative") or ()):
                kept["label"] = ""
            if not kept["split"] and fold.test_patients:
                kept["split"] = "test" if kept["patient_id"] in fold.test_patients else "train"
            out.append(kept)
        return out


def read_dataset(
    path: Path, data: Path, budget: str, methods: Sequence[str] = (), folds: Sequence[int] = (), seeds: int = 0
) -> DataSet:
    """A data set under a budget, cut down to `methods`, fold numbers and a number of seeds where these are given."""
    if not path.is_file():
        raise Wrong(
            f"{path}: no such data set; there are {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}"
        )
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    budgets = raw.get("budgets") or {}
    if budget not in budgets:
        raise Wrong(f"{path}: no budget {budget!r}; there are {', '.join(budgets)}")
    chosen = dict(budgets[budget])
    most_folds, own_seeds = chosen.pop("folds", 0), chosen.pop("seeds", 1)
    values = merged({k: v for k, v in raw.items() if k != "budgets"}, chosen)
    if strange := set(values) - KEYS:
        raise Wrong(f"{path}: unknown keys {', '.join(sorted(strange))}; known are {', '.join(sorted(KEYS))}")
    declared = {n: a or {} for n, a in values["methods"].items()}
    arms = [_arm(name, declared, path) for name in declared]
    taking_part = methods or values.get("take") or declared
    if missing := set(taking_part) - {a.name for a in arms}:
        raise Wrong(f"{path}: no method {', '.join(sorted(missing))}; there are {', '.join(a.name for a in arms)}")
    every = [Fold(i, tuple(map(str, f))) for i, f in enumerate(values.get("folds") or [()], 1)]
    kept = [f for f in every if f.number in folds] if folds else every[: most_folds or len(every)]
    if not kept:
        raise Wrong(f"{path}: no such fold; there are 1..{len(every)}")
    values["folds"] = every
    places = {"data": str(data), "python": sys.executable, "here": str(path.parent.resolve())}
    return DataSet(
        path.stem,
        values,
        places,
        tuple(a for a in arms if a.name in taking_part),
        tuple(kept),
        seeds or own_seeds,
        {s: values.get(s) or {} for s in ("tile", "pretrain", "pseudolabel", "segment")},
    )


def _arm(name: str, declared: Mapping[str, Mapping[str, Any]], path: Path) -> Arm:
    """An arm; `like` names another whose method and parameters it has, with its own over them."""
    arm = declared[name]
    if (model := arm.get("like")) and model not in declared:
        raise Wrong(f"{path}: {name} is like {model}, which is not there")
    base = _arm(str(model), declared, path) if model else Arm(name, name, {}, {})
    params = {**base.params, **(arm.get("params") or {})}
    return Arm(name, arm.get("method", base.method), {**base.options, **(arm.get("pseudolabel") or {})}, params)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` put over it, mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out
