"""The stage: fit methods on the training bags, then score every store and write its masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsipipe.pseudolabel.fit import Fit
from wsipipe.pseudolabel.inputs import Inputs
from wsipipe.pseudolabel.labeller import SlideLabeller
from wsipipe.pseudolabel.options import PseudolabelOptions
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report

__all__ = ["PseudolabelOptions", "run"]


def run(store_paths: Sequence[Path], options: PseudolabelOptions, context: RunContext) -> tuple[Report, list[Path]]:
    """Fit each method (or load its fit of the same inputs) and write `scores/<name>` and `labels/<name>` into stores.

    The labels may also name other stores in the folder of stores, so a new slide can be scored by itself. Returns the
    ledger and the stores that hold the masks of every method. Everything is checked before any work starts.
    """
    fits = [Fit(Inputs.resolve(store_paths, each, context), context) for each in options.per_method()]
    if not context.overwrite:
        for fit in fits:
            fit.check_free()
            SlideLabeller.of(fit).check_free()
    report, done = context.report(), list(store_paths)
    for fit in fits:
        labelled, made = _label_all(fit, context)
        report.merge(labelled)
        done = [path for path in done if path in made]
    return report, done


def _label_all(fit: Fit, context: RunContext) -> tuple[Report, list[Path]]:
    """The masks of one method in all stores: its ledger and the stores that hold them."""
    model, labeller = fit.model(), SlideLabeller.of(fit)
    report, done = context.report(), list[Path]()
    stores = fit.inputs.slides.targets
    for i, store in enumerate(stores):
        context.progress("score", i, len(stores), store.slide_id)
        with report.guard(store.slide_id):
            report.add(store.slide_id, labeller.label(model, store), store=store.path)
            done.append(store.path)
    context.progress("score", len(stores), len(stores))
    report.write(fit.folder / "pseudolabel.csv")
    return report, done
