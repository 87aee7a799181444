"""Judge the maps of many stores against their truth, with the trivial answers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.config import EvaluateConfig, RunConfig, check
from wsipipe.errors import ConfigError, StoreError
from wsipipe.evaluate.metrics import Confusion, count_pairs
from wsipipe.runtime import Progress, Report, silent
from wsipipe.slides.mask import ValueMap, find_masks, read_mask
from wsipipe.store import SlideStore
from wsipipe.store.slide_store import shard_windows

TISSUE = 1
"""Value of tissue in `labels/tissue`."""

Names = tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """What came out. `answers` begins with the judged labels, by their name, over all `classes`.

    The trivial answers follow, each a confusion of one class: "all tissue is <class>" and "all tissue of slides with
    <class>". `slides` were judged, `note` says which pixels were scored, `report` holds the failed stores.
    """

    classes: Names
    answers: Mapping[str, Confusion]
    slides: Names
    note: str
    report: Report


@dataclass(frozen=True, eq=False)
class _Tally:
    """Counts of one slide: the judged labels, and truth against tissue, int64 [C, 2] (not tissue, tissue)."""

    confusion: Confusion
    tissue: NDArray[np.int64]


def judge(
    stores: Sequence[Path],
    config: EvaluateConfig,
    run: RunConfig,
    split: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Pool `labels/<config.labels>` of every store that has a truth into one confusion matrix.

    `split` maps slide ids to the names of their split; it is needed if `config.split` is given, and slides that it
    does not hold are then left out. A store that cannot be judged costs only itself and is recorded as failed. The
    ledger goes to `<run.runs>/<config.labels>/evaluate.csv`. Raises ConfigError if there is nothing to judge, or a
    truth value without a meaning; StoreError if every store failed.
    """
    check(config.truth != "", "evaluate.truth: no truth given; name a folder of masks with --truth")
    check(not config.split or split is not None, f"evaluate.split: {config.split!r} needs a labels file with splits")
    report = Report(run.max_failed)
    opened, apart = _open(stores, config, split, report)
    truths = find_masks(config.truth, [s.slide_id for s in opened]) if opened else {}
    chosen = [s for s in opened if s.slide_id in truths]
    tallies = _tallies(chosen, truths, config, report, progress)
    report.write(Path(run.runs) / config.labels / "evaluate.csv")
    if not tallies:
        raise StoreError(f"none of {len(report.rows)} stores could be judged; the first: {report.rows[0]['reason']}")
    names = next(iter(tallies.values())).confusion.names
    answers = _pooled(config.labels, names, tallies)
    counts = {
        "stores without truth, left out": len(opened) - len(chosen),
        f"stores outside split {config.split}, left out": apart,
        "stores that failed": len(report.of("failed")),
    }
    note = [_scored(answers[config.labels], len(tallies)), *(f"{what}: {n}" for what, n in counts.items() if n)]
    return Evaluation(names, answers, tuple(tallies), "; ".join(note), report)


def _open(
    stores: Sequence[Path], config: EvaluateConfig, split: Mapping[str, str] | None, report: Report
) -> tuple[list[SlideStore], int]:
    """The stores of the asked split, and how many are not in it; those that cannot be opened are reported."""
    opened, apart = [], 0
    for path in stores:
        with report.guard(path.stem):
            store = SlideStore(path)
            if config.split and (split or {}).get(store.slide_id) != config.split:
                apart += 1
            else:
                opened.append(store)
    if not opened and not report.rows:
        where = f" in split {config.split!r}; its names come from the labels file" if config.split else ""
        raise ConfigError(f"none of the {len(stores)} stores is to be judged{where}")
    return opened, apart


def _tallies(
    stores: Sequence[SlideStore],
    truths: Mapping[str, Path],
    config: EvaluateConfig,
    report: Report,
    progress: Progress,
) -> dict[str, _Tally]:
    """The counts of every store that can be judged, by slide id; what became of each goes to `report`."""
    tallies: dict[str, _Tally] = {}
    names: Names | None = None
    for i, store in enumerate(stores):
        progress("evaluate", i, len(stores), store.slide_id)
        with report.guard(store.slide_id):
            names = _agreed(store, config.labels, names)
            tallies[store.slide_id] = tally = _tally(store, config, names, truths[store.slide_id])
            report.add(store.slide_id, "done", pixels=tally.confusion.pixels)
    progress("evaluate", len(stores), len(stores))
    return tallies


def _agreed(store: SlideStore, labels: str, names: Names | None) -> Names:
    """The named classes of `labels/<labels>`; StoreError if they are not said or differ from those of the others."""
    found = store.attributes("labels", labels).get("classes")
    if not found:
        raise StoreError(f"{store.path}: labels/{labels} does not say its classes; compute or import it again")
    if names is not None and tuple(found) != names:
        raise StoreError(
            f"{store.path}: labels/{labels} has the classes {', '.join(found)}, other stores have {', '.join(names)}; "
            "compute it again for all stores with the same classes"
        )
    return tuple(found)


def _tally(store: SlideStore, config: EvaluateConfig, names: Names, truth_file: Path) -> _Tally:
    """Count one slide shard by shard, so that only its truth is ever whole in memory."""
    meaning = ValueMap.parse(config.truth_map, names)
    answer, tissue = store.labels(config.labels), store.labels("tissue")
    truth_mask = read_mask(truth_file, store.grid)
    tally = _Tally(Confusion.empty(names), np.zeros((len(names) + 1, 2), np.int64))
    for _, w in shard_windows(answer.spec):
        part = truth_mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
        truth = meaning.apply(part, truth_file)
        try:
            tally.confusion.add(truth, answer.read(w).astype(np.uint8, copy=False))
        except ValueError as error:
            raise StoreError(f"{store.path}: labels/{config.labels}: {error}; compute it again") from None
        tally.tissue[...] += count_pairs(truth, (tissue.read(w) == TISSUE).astype(np.uint8), tally.tissue.shape)
    return tally


def _pooled(labels: str, names: Names, tallies: Mapping[str, _Tally]) -> dict[str, Confusion]:
    """The judged labels, then the two trivial answers for every class, over the same pixels."""
    total = Confusion.empty(names)
    for tally in tallies.values():
        total = total.plus(tally.confusion)
    answers = {labels: total}
    for k, name in enumerate(names, start=1):
        every, positive = np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64)
        for tally in tallies.values():
            pairs = np.stack([np.delete(tally.tissue, k, axis=0).sum(0), tally.tissue[k]])
            every += pairs
            # a slide without the class is answered "nowhere": all its pixels move to column 0
            holds = pairs[1].sum() > 0
            positive += pairs if holds else np.stack([pairs.sum(1), np.zeros(2, np.int64)], axis=1)
        answers[f"all tissue is {name}"] = Confusion.binary(name, every)
        answers[f"all tissue of slides with {name}"] = Confusion.binary(name, positive)
    return answers


def _scored(confusion: Confusion, slides: int) -> str:
    """Which pixels were scored, in words."""
    share = 100 * confusion.unpredicted / confusion.pixels if confusion.pixels else 0.0
    return (
        f"scored: {confusion.pixels:,} px of {slides} slides where the truth is not ignore; "
        f"{share:.1f} % of them not predicted (taken for class 0)"
    )
