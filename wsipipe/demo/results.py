"""Evaluate the demonstration: pseudo-masks, final maps, and the trivial answers, in one table for 80 columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.io import imread

from wsipipe.config.options import EvaluateConfig
from wsipipe.demo.cohort import Cohort
from wsipipe.demo.trivial import TrivialAnswer, best_colour_threshold, histogram_classifier
from wsipipe.evaluate import stage as evaluate
from wsipipe.evaluate.cohort import EvaluateInputs
from wsipipe.evaluate.confusion import Confusion
from wsipipe.evaluate.files import write_files
from wsipipe.evaluate.metrics import per_class
from wsipipe.evaluate.rows import shown
from wsipipe.labels import LabelTable, read_labels
from wsipipe.pipeline import Settings
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.table import aligned
from wsipipe.slides import open_slide

TRUTH_MAP = "0=ignore,1=0,2=tumour"
TUNED = " *"
"""Marks the trivial answers that are tuned on the truth."""


@dataclass(frozen=True)
class Results:
    """The printed table, and the Dice of the maps of the test slides."""

    table: str
    dice: float


def evaluate_demo(cohort: Cohort, settings: Settings, stores: list[Path], truth: Path) -> Results:
    """Compare pseudo-masks and maps with the truth in the folder `truth`; a row per answer.

    The files of each evaluation go to runs/<name>/<split>.
    """
    labels = read_labels(cohort.labels_csv)
    rows = [["answer", "slides", *(m.title for m in per_class())]]
    masks, maps = settings.segment.masks, settings.segment.name or settings.segment.architecture
    for title, name, split in (
        ("pseudo-masks", masks, "train"),
        ("pseudo-masks", masks, "test"),
        ("final maps", maps, "test"),
    ):
        config = EvaluateConfig(masks=name, truth=str(truth), truth_map=TRUTH_MAP, split=split)
        result = evaluate.run(EvaluateInputs(stores, labels), config, RunContext(settings.run))
        write_files(result, Path(settings.run.runs) / name / split)
        slides = f"{len(result.slides)} {split}"
        rows.append([title, slides, *_values(result.answers[result.name])])
    trivial = [[n, slides, *_values(c)] for n, c in result.answers.items() if n != result.name]
    by_colour = _colour_answers(cohort, labels, truth)
    for a in by_colour:
        trivial.append([a.name + TUNED, slides, *(shown(a.dice) if m.name == "dice" else "-" for m in per_class())])
    lines = aligned([*rows, *([f"  {row[0]}", *row[1:]] for row in trivial)])
    lines.insert(-len(trivial), "trivial answers:")
    notes = [
        f"Each row: class {cohort.classes[0]}, the pixels of all its slides pooled.",
        f"{TUNED.strip()} tuned on the truth, which no other answer uses:",
        f"  {by_colour[0].found}; logistic regression on colours",
    ]
    return Results("\n".join([*lines, *notes]), float(result.metrics()["dice"][1]))


def _values(confusion: Confusion) -> list[str]:
    """The metrics of the one class."""
    return [shown(float(m.of(confusion.matrix)[1])) for m in per_class()]


def _colour_answers(cohort: Cohort, labels: LabelTable, truth: Path) -> list[TrivialAnswer]:
    """What colour alone reaches on the test slides, tuned on the truth."""
    train, test = ([p for p in cohort.slides if p.stem in _ids(labels, split)] for split in ("train", "test"))
    truths = {p: imread(truth / f"{p.stem}.png") for p in (*train, *test)}
    pixels = {p: _pixels(p) for p in truths}
    fitted_on = [pixels[p] for p in train], [truths[p] for p in train]
    tested_on = [pixels[p] for p in test], [truths[p] for p in test]
    return [best_colour_threshold(*tested_on), histogram_classifier(*fitted_on, *tested_on)]


def _ids(labels: LabelTable, split: str) -> set[str]:
    return {r.slide_id for r in labels.of_split(split)}


def _pixels(file: Path) -> NDArray[np.uint8]:
    """All of level 0: uint8 [h, w, 3]."""
    slide = open_slide(file, file.stem)
    pixels = slide.read((0, 0), 0, slide.info.size_px0)
    slide.close()
    return pixels
