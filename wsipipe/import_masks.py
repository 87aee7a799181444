"""Write masks and annotations that a user already has into the stores, as labels like any other."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from wsipipe.annotations.mask_image import ValueMap, find_masks
from wsipipe.annotations.open import SUFFIXES, open_truth
from wsipipe.config.options import RunConfig
from wsipipe.errors import check
from wsipipe.labels import IGNORE, Classes
from wsipipe.runtime.digest import digest
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress, silent
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.names import check_name

log = logging.getLogger(__name__)


def import_masks(
    stores: Sequence[Path],
    spec: str,
    value_map_text: str,
    classes: tuple[str, ...],
    name: str,
    *,
    run: RunConfig,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[Report, list[Path]]:
    """Write the mask of every store that has one into `labels/<name>`; returns the ledger and the stores that hold it.

    `spec` says where the masks or annotations are (see `find_masks`), `value_map_text` what their values or names
    mean, e.g. `1=stroma,2=tumour` (see `ValueMap.parse`, `open_truth`). A store that holds the same already is
    skipped, one that fails is recorded and costs only itself. The ledger goes to `<run.runs>/<name>/import.csv`.
    Raises ConfigError for bad names, classes or values, and if there is no mask for any store.
    """
    _check(classes, name)
    meaning = ValueMap.parse(value_map_text, classes, "--map")
    report = Report(run.max_failed)
    opened = _open(stores, report)
    masks = find_masks(spec, [s.slide_id for s in opened], SUFFIXES) if opened else {}
    written: list[Path] = []
    chosen = [s for s in opened if s.slide_id in masks]
    if len(chosen) < len(opened):
        log.info("%d of %d stores have no mask at %s", len(opened) - len(chosen), len(opened), spec)
    for i, store in enumerate(chosen):
        progress("import", i, len(chosen), store.slide_id)
        mask = masks[store.slide_id]
        with report.guard(store.slide_id):
            done = _import(store, mask, meaning, classes, name, overwrite=overwrite)
            report.add(store.slide_id, "done" if done else "skipped", mask=mask)
            written.append(store.path)
    progress("import", len(chosen), len(chosen))
    report.write(Path(run.runs) / name / "import.csv")
    return report, written


def _check(classes: Sequence[str], name: str) -> None:
    """ConfigError unless the names can be used."""
    check_name(name)
    check(len(classes) > 0, "no classes given; name them in mask order, e.g. --class stroma --class tumour")
    check(len(set(classes)) == len(classes), f"classes {', '.join(classes)}: a name is given twice")
    check("ignore" not in classes, "class 'ignore': this word means value 255; choose another name")
    Classes(tuple(classes))


def _open(stores: Sequence[Path], report: Report) -> list[SlideStore]:
    """The stores that can be opened; the others are reported."""
    opened = []
    for path in stores:
        with report.guard(path.stem):
            opened.append(SlideStore(path))
    return opened


def _import(
    store: SlideStore, path: Path, meaning: ValueMap, classes: tuple[str, ...], name: str, *, overwrite: bool
) -> bool:
    """Write the mask of one store; False if it is there already."""
    with path.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    made_of = digest(sha256, meaning.pairs, meaning.names, classes, store.pixel_digest)
    if store.can_reuse("labels", name, made_of, overwrite):
        return False
    read = open_truth(path, store.grid, meaning, store.shown_from_px0)
    values = {0: "none", **dict(enumerate(classes, start=1)), IGNORE: "ignore"}
    meta = {"classes": list(classes), "source": str(path.resolve()), "digest": made_of}
    store.write_labels(
        name,
        values,
        meta,
        ((shard, read(window)) for shard, window in shard_windows(store.mask_spec)),
    )
    return True
