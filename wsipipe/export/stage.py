"""The stage: masks or maps of many stores into files that other programs open, each file read back if asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wsipipe.config.options import ExportConfig
from wsipipe.errors import check, other_inputs
from wsipipe.export.areas import write_areas
from wsipipe.export.dicom_codes import parse_codes
from wsipipe.export.dicom_seg import verify_dicom_seg, write_dicom_seg
from wsipipe.export.geojson import GeoJsonOptions, verify_geojson, write_geojson
from wsipipe.export.ome_tiff import verify_ome_tiff, write_ome_tiff
from wsipipe.export.overlay import overlay
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.digest import digest
from wsipipe.runtime.ledger import Report, read_ledger
from wsipipe.store import SlideStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """How a store's mask becomes a file called <slide_id><suffix>; verify is None for pictures."""

    suffix: str
    write: Callable[[SlideStore, Path, ExportConfig], object]
    verify: Callable[[SlideStore, Path, ExportConfig], None] | None


def _source(store: SlideStore, config: ExportConfig) -> Path | None:
    return Path(config.dicom_source.format(slide_id=store.slide_id)) if config.dicom_source else None


FORMATS: Mapping[str, Format] = {
    "ome-tiff": Format(
        ".ome.tif",
        lambda store, path, c: write_ome_tiff(store, c.masks, path),
        lambda store, path, c: verify_ome_tiff(path, store, c.masks),
    ),
    "geojson": Format(
        ".geojson",
        lambda store, path, c: write_geojson(store, c.masks, path, _outlines(c)),
        lambda store, path, c: verify_geojson(path, store, c.masks),
    ),
    "dicom-seg": Format(
        ".dcm",
        lambda store, path, c: write_dicom_seg(
            store, c.masks, path, c.dicom_kind, _source(store, c), parse_codes(c.dicom_codes)
        ),
        lambda store, path, c: verify_dicom_seg(path, store, c.masks, _source(store, c)),
    ),
    "overlay": Format(".png", lambda store, path, c: overlay(store, c.masks, path, c.overlay_px), None),
}

AREAS = "areas"
"""The format that is one table of all slides."""


def _outlines(config: ExportConfig) -> GeoJsonOptions:
    return GeoJsonOptions(config.level, config.tolerance_um, config.min_area_um2)


def run(store_paths: Sequence[Path], config: ExportConfig, context: RunContext) -> tuple[Report, list[Path]]:
    """Write `labels/<config.masks>` of every store in every format; returns the ledger and the files.

    Files go to `<config.folder>/<config.masks>/`. What was written before from the same mask in the same way is
    skipped, what failed is written again, a file made from another mask is an error unless `context.overwrite`. With
    `config.verify` every file, skipped ones too, is read back and compared with the mask at level 0.
    """
    for name in config.formats:
        known = (*FORMATS, AREAS)
        check(name in known, f"export.formats: {name!r} is not known; choose of {', '.join(known)}")
    folder, ledger = Path(config.folder) / config.masks, context.runs / config.masks / "export.csv"
    before = {row["item"]: row for row in read_ledger(ledger)}
    report, made = context.report(), []
    stores = [SlideStore(p) for p in store_paths]
    for i, store in enumerate(stores):
        for name in [f for f in config.formats if f != AREAS]:
            context.progress("export", i, len(stores), f"{store.slide_id} {name}")
            path = folder / f"{store.slide_id}{FORMATS[name].suffix}"
            with report.guard(path.name):
                row = before.get(path.name, {})
                made.append(_one(store, FORMATS[name], path, config, report, row, context.overwrite))
    context.progress("export", len(stores), len(stores))
    if AREAS in config.formats:
        with report.guard("areas.csv"):
            made.append(write_areas(stores, config.masks, folder / "areas.csv"))
            report.add("areas.csv", "done")
    report.write(ledger)
    return report, made


def _one(
    store: SlideStore,
    how: Format,
    path: Path,
    config: ExportConfig,
    report: Report,
    before: Mapping[str, str],
    overwrite: bool,
) -> Path:
    """Write one file, unless it is there and has not failed, and read it back if asked. `before`: its ledger row."""
    options = {k: v for k, v in asdict(config).items() if k not in ("folder", "formats", "verify")}
    key = digest(store.attributes("labels", config.masks).get("digest", ""), store.pixel_digest, options)
    status = "skipped"
    if not path.exists() or before.get("digest") != key:
        check(
            overwrite or not path.exists() or before.get("status") == "failed",
            other_inputs(path, choose="--folder"),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        how.write(store, path, config)
        status = "done"
    if config.verify and how.verify:
        how.verify(store, path, config)
        log.info("%s: read back, equal to labels/%s", path, config.masks)
    report.add(path.name, status, digest=key, file=path)
    return path
