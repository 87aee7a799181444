"""The demonstration: a small cohort with known truth, the whole chain on it, one table and a picture per slide."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from wsipipe.annotations.mask_image import read_mask
from wsipipe.config.options import EvaluateConfig
from wsipipe.demo.cohort import Cohort, CohortConfig, make_cohort
from wsipipe.demo.trivial import TrivialAnswer, best_colour_threshold, histogram_classifier
from wsipipe.errors import WsipipeError
from wsipipe.evaluate import stage as evaluate
from wsipipe.evaluate.cohort import EvaluateInputs
from wsipipe.evaluate.confusion import Confusion
from wsipipe.evaluate.files import write_files
from wsipipe.evaluate.metrics import per_class
from wsipipe.evaluate.rows import shown
from wsipipe.export.formats.overlay import write_overlay
from wsipipe.labels import read_labels
from wsipipe.pipeline import Settings, read_settings, run_chain
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.progress import Progress
from wsipipe.runtime.table import aligned
from wsipipe.slides import open_slide
from wsipipe.store import SlideStore

TRUTH_MAP = "0=ignore,1=0,2=tumour"

PIPELINE = """\
# Settings of the demonstration: the defaults with less training, for two processors and a few minutes.
# In this folder, `wsipipe run` repeats it.
run: {slides: [slides]}
pretrain: {steps: 100}
pseudolabel:
  labels: labels.csv
  camel: {warm_steps: 200, selector_steps: 300, retrain_steps: 200, self_train_steps: 150, calibrate: false,
          overlap: 1, views: 2}
segment: {steps: 200}
"""


def run_demo(folder: Path, progress: Progress) -> str:
    """Make the cohort in `folder`, run the chain with the truth out of reach, judge it; returns the table as text.

    The truth is written to a temporary folder and moved to `folder`/truth only when every map is finished.
    """
    began = time.monotonic()
    settings = _settings(folder)
    with tempfile.TemporaryDirectory() as hidden:
        shutil.rmtree(folder / "truth", ignore_errors=True)
        cohort = make_cohort(
            folder, CohortConfig(), lambda name, done, total: progress("draw", done, total, name), Path(hidden)
        )
        report, stores = run_chain(settings, settings.context(progress))
        if report.exit_code:
            raise WsipipeError(f"the chain failed on its own cohort: {report.of('failed')}")
        shutil.copytree(hidden, folder / "truth")
    text = _table(cohort, settings, stores, folder / "truth")
    for i, path in enumerate(stores):
        store = SlideStore(path)
        write_overlay(store, settings.segment.architecture, folder / "pictures" / f"{store.slide_id}.png")
        progress("draw maps", i + 1, len(stores), store.slide_id)
    minutes = (time.monotonic() - began) / 60
    return f"{text}\npictures of all maps: {folder / 'pictures'}\nfinished in {minutes:.1f} minutes"


def _settings(folder: Path) -> Settings:
    """Write `PIPELINE` into `folder` and read it back, with every path inside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pipeline.yaml"
    file.write_text(PIPELINE, encoding="utf-8")
    paths = {"slides": (str(folder / "slides"),), "stores": str(folder / "stores"), "runs": str(folder / "runs")}
    return read_settings(file, {"run": paths, "pseudolabel": {"labels": str(folder / "labels.csv")}})


def _table(cohort: Cohort, settings: Settings, stores: list[Path], truth: Path) -> str:
    """One table: pseudo-masks, final maps, and the trivial answers that they have to beat."""
    labels = read_labels(cohort.labels_csv)
    splits = {r.slide_id: r.split for r in labels.rows}
    maps = settings.segment.architecture
    rows = [["answer", "class", *(m.title for m in per_class()), "slides"]]
    for title, name, split in (
        ("pseudo-masks, training slides", settings.segment.masks, "train"),
        ("pseudo-masks, test slides", settings.segment.masks, "test"),
        ("final maps, test slides", maps, "test"),
    ):
        config = EvaluateConfig(masks=name, truth=str(truth), truth_map=TRUTH_MAP, split=split)
        result = evaluate.run(EvaluateInputs(stores, labels), config, RunContext(settings.run))
        write_files(result, Path(settings.run.runs) / name / split)
        answer, *trivial = result.answers.items()
        for k, class_name in enumerate(("none", *result.classes)):
            rows.append(_row(title, class_name, answer[1], k, len(result.slides)))
    rows += [_row(f"  trivial: {n}", c.names[0], c, 1, len(result.slides)) for n, c in trivial]
    for a in _trivial(cohort, stores, truth, splits):
        values = [shown(a.dice) if m.name == "dice" else "-" for m in per_class()]
        rows.append([f"  trivial: {a.name}", cohort.classes[0], *values, str(len(result.slides))])
    note = "the last two trivial answers are tuned on the truth; nothing else has seen it"
    return "\n".join([*aligned(rows), note])


def _row(title: str, class_name: str, confusion: Confusion, k: int, slides: int) -> list[str]:
    values = [float(m.of(confusion.matrix)[k]) for m in per_class()]
    return [title, class_name, *map(shown, values), str(slides)]


def _trivial(cohort: Cohort, stores: list[Path], truth: Path, splits: dict[str, str]) -> list[TrivialAnswer]:
    """What colour alone reaches on the test slides, although it is given the truth to tune itself on."""
    pixels, masks = {}, {}
    for path, store in ((p, SlideStore(s)) for p in cohort.slides for s in stores if s.stem == p.stem):
        slide = open_slide(path, store.slide_id)
        pixels[store.slide_id] = slide.read((0, 0), 0, store.grid.size_px0)
        masks[store.slide_id] = read_mask(truth / f"{store.slide_id}.png", store.grid)
        slide.close()
    train, test = ([i for i in pixels if splits[i] == s] for s in ("train", "test"))
    return [
        best_colour_threshold([pixels[i] for i in test], [masks[i] for i in test]),
        histogram_classifier(
            [pixels[i] for i in train], [masks[i] for i in train], [pixels[i] for i in test], [masks[i] for i in test]
        ),
    ]
