"""The demonstration: a small cohort with known truth, the whole chain on it, one table and a picture per slide."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from wsipipe.demo.cohort import CohortConfig, make_cohort
from wsipipe.demo.overview import draw_overview
from wsipipe.demo.results import evaluate_demo
from wsipipe.errors import WsipipeError
from wsipipe.export.formats.overlay import write_overlay
from wsipipe.pipeline import Settings, read_settings, run_chain
from wsipipe.runtime.progress import Progress
from wsipipe.store import SlideStore

COHORT = CohortConfig(train_slides=6, test_slides=3, size_px0=(1792, 1536))

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
    settings, pictures = _settings(folder), folder / "pictures"
    with tempfile.TemporaryDirectory() as hidden:
        cohort = make_cohort(
            folder, COHORT, lambda name, done, total: progress("draw", done, total, name), Path(hidden)
        )
        for shows_truth in (*(folder / "truth" / f"{p.stem}.png" for p in cohort.slides), pictures / "overview.png"):
            shows_truth.unlink(missing_ok=True)  # of an earlier run
        report, stores = run_chain(settings, settings.context(progress))
        if report.exit_code:
            raise WsipipeError(f"the chain failed on its own cohort: {report.of('failed')}")
        shutil.copytree(hidden, folder / "truth", dirs_exist_ok=True)
    for i, path in enumerate(stores):
        store = SlideStore(path)
        write_overlay(store, settings.segment.architecture, pictures / f"{store.slide_id}.png")
        progress("draw maps", i + 1, len(stores), store.slide_id)
    progress("evaluate", 0, 1)
    results = evaluate_demo(cohort, settings, stores, folder / "truth")
    overview = draw_overview(cohort, settings, stores, folder / "truth", results.dice, pictures / "overview.png")
    progress("evaluate", 1, 1)
    minutes = (time.monotonic() - began) / 60
    return f"{results.table}\npictures: {pictures}; the first to open: {overview}\nfinished in {minutes:.1f} minutes"


def _settings(folder: Path) -> Settings:
    """Write `PIPELINE` into `folder` and read it back, with every path inside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pipeline.yaml"
    file.write_text(PIPELINE, encoding="utf-8")
    paths = {"slides": (str(folder / "slides"),), "stores": str(folder / "stores"), "runs": str(folder / "runs")}
    return read_settings(file, {"run": paths, "pseudolabel": {"labels": str(folder / "labels.csv")}})
