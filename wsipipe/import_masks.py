"""The stage `masks import`: write masks and annotations that the user already has into the stores."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsipipe.annotations.mask_image import ValueMap, find_masks
from wsipipe.annotations.open import SUFFIXES, open_truth
from wsipipe.errors import check
from wsipipe.labels import Classes
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.digest import digest
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.names import check_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportOptions:
    """What to import. Raises ConfigError if a name or class cannot be used.

    annotations: folder, glob or pattern of mask images and annotation files (see `find_masks`). value_map: maps their
    values or names to classes, e.g. `1=stroma,2=tumour` (see `ValueMap.parse`). classes: class names in mask order.
    name: the masks become `labels/<name>` of each store.
    """

    annotations: str
    classes: tuple[str, ...]
    name: str
    value_map: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        check(len(self.classes) > 0, "no classes; name them in mask order, e.g. --class stroma --class tumour")
        check(len(set(self.classes)) == len(self.classes), f"classes {', '.join(self.classes)}: a name appears twice")
        check("ignore" not in self.classes, "class 'ignore': the word is reserved for value 255; choose another name")
        Classes(self.classes)


def run(inputs: Sequence[Path], options: ImportOptions, context: RunContext) -> tuple[Report, list[Path]]:
    """Write the mask of every store that has one into `labels/<name>`; returns the ledger and the stores with it.

    A store that already has the same mask is skipped; one that fails is recorded and does not stop the others. The
    ledger is written to `<runs>/<name>/import.csv`. Raises ConfigError for a bad value map or values that it lacks,
    and if no store has a mask.
    """
    value_map = ValueMap.parse(options.value_map, options.classes, "--map")
    report = context.report()
    stores = _open(inputs, report)
    masks = find_masks(options.annotations, [s.slide_id for s in stores], SUFFIXES) if stores else {}
    matched = [s for s in stores if s.slide_id in masks]
    if len(matched) < len(stores):
        log.info("%d of %d stores have no mask at %s", len(stores) - len(matched), len(stores), options.annotations)
    written: list[Path] = []
    for i, store in enumerate(matched):
        context.progress("import", i, len(matched), store.slide_id)
        mask = masks[store.slide_id]
        with report.guard(store.slide_id):
            done = _import(store, mask, value_map, options, context.overwrite)
            report.add(store.slide_id, "done" if done else "skipped", mask=mask)
            written.append(store.path)
    context.progress("import", len(matched), len(matched))
    report.write(context.runs / options.name / "import.csv")
    return report, written


def _open(paths: Sequence[Path], report: Report) -> list[SlideStore]:
    """The stores that can be opened; the others are recorded as failed."""
    opened = []
    for path in paths:
        with report.guard(path.stem):
            opened.append(SlideStore(path))
    return opened


def _import(store: SlideStore, path: Path, value_map: ValueMap, options: ImportOptions, overwrite: bool) -> bool:
    """Write the mask of one store; False if the store already has it."""
    with path.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    key = digest(sha256, value_map.pairs, value_map.names, options.classes, store.pixel_digest)
    if store.can_reuse("labels", options.name, key, overwrite):
        return False
    read = open_truth(path, store.grid, value_map, store.shown_from_px0)
    values = Classes(options.classes).mask_values()
    meta = {"classes": list(options.classes), "source": str(path.resolve()), "digest": key}
    shards = ((shard, read(window)) for shard, window in shard_windows(store.mask_spec))
    store.write_labels(options.name, values, meta, shards)
    return True
