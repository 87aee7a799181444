"""The export stage: masks or maps of many stores into files that other programs open, read back if asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from wsipipe.config.options import ExportConfig
from wsipipe.errors import check, other_inputs
from wsipipe.export.formats import Checked, FileFormat, TableFormat, Verifiable, load
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.digest import digest
from wsipipe.runtime.ledger import Report, read_ledger
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)


def run(store_paths: Sequence[Path], options: ExportConfig, context: RunContext) -> tuple[Report, list[Path]]:
    """Write `labels/<options.masks>` of every store in every format; returns the ledger and the files.

    Files go to `<options.folder>/<options.masks>/`. A file that was written from the same mask with the same options is
    skipped, a failed one is written again, a file of another mask is an error unless `context.overwrite`. With
    `options.verify` every file, skipped ones too, is read back and compared with the mask at level 0.
    """
    formats = load(options.formats)
    for how in formats.values():
        if isinstance(how, Checked):
            how.check_options(options)
    files = {name: how for name, how in formats.items() if isinstance(how, FileFormat)}
    folder, ledger = Path(options.folder) / options.masks, context.runs / options.masks / "export.csv"
    before = {row["item"]: row for row in read_ledger(ledger)}
    report, made = context.report(), []
    stores = [SlideStore(p) for p in store_paths]
    for i, store in enumerate(stores):
        for name, how in files.items():
            context.progress("export", i, len(stores), f"{store.slide_id} {name}")
            path = folder / f"{store.slide_id}{how.SUFFIX}"
            with report.guard(path.name):
                row = before.get(path.name, {})
                made.append(_write(store, how, path, options, report, row, context.overwrite))
    context.progress("export", len(stores), len(stores))
    for table in formats.values():
        if isinstance(table, TableFormat):
            with report.guard(table.FILE):
                table.write_all(stores, folder / table.FILE, options)
                made.append(folder / table.FILE)
                report.add(table.FILE, "done")
    report.write(ledger)
    return report, made


def _write(
    store: SlideStore,
    how: FileFormat,
    path: Path,
    options: ExportConfig,
    report: Report,
    before: Mapping[str, str],
    overwrite: bool,
) -> Path:
    """Write one file, unless it exists and did not fail, and read it back if asked. `before`: its ledger row."""
    used = {k: v for k, v in asdict(options).items() if k not in ("folder", "formats", "verify")}
    key = digest(store.attributes("labels", options.masks).get("digest", ""), store.pixel_digest, used)
    status = "skipped"
    if not path.exists() or before.get("digest") != key:
        check(
            overwrite or not path.exists() or before.get("status") == "failed",
            other_inputs(path, choose="--folder"),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        how.write(store, path, options)
        status = "done"
    if options.verify and isinstance(how, Verifiable):
        how.verify(store, path, options)
        log.info("%s: read back, equal to labels/%s", path, options.masks)
    report.add(path.name, status, digest=key, file=path)
    return path
