"""The stage: every format of every store, skipped when done, read back if asked, and one failure costs one file."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from support.masked import mask_store, write_mask

from wsipipe.config.options import ExportConfig, RunConfig
from wsipipe.errors import ConfigError
from wsipipe.export.stage import run as export_stores
from wsipipe.runtime.context import RunContext
from wsipipe.store import SlideStore


@pytest.fixture
def mask() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.choice([0, 1, 2, 3, 255], (10, 14)).repeat(16, 0).repeat(16, 1).astype(np.uint8)


@pytest.fixture
def stores(tmp_path: Path, mask: np.ndarray) -> list[Path]:
    masks = {"tissue": np.ones_like(mask), "map": mask}
    return [mask_store(tmp_path / f"{name}.zarr", masks).path for name in ("a", "b")]


@pytest.fixture
def config(tmp_path: Path) -> ExportConfig:
    return ExportConfig(masks="map", folder=str(tmp_path / "out"), verify=True, overlay_px=100)


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(runs=str(tmp_path / "runs"), workers=1)


def test_every_store_is_written_in_every_format(
    stores: list[Path], config: ExportConfig, run: RunConfig, mask: np.ndarray
) -> None:
    report, made = export_stores(stores, config, RunContext(run))
    assert report.exit_code == 0, report.rows
    names = [f"{s}{end}" for s in "ab" for end in (".geojson", ".ome.tif", ".png")] + ["areas.csv"]
    assert [p.name for p in made] == names
    assert {p.parent for p in made} == {Path(config.folder) / "map"}
    np.testing.assert_array_equal(tifffile.imread(made[1]), mask)
    assert len(json.loads(made[0].read_text())["features"]) > 5
    assert max(imagecodecs.png_decode(made[2].read_bytes()).shape) == 100
    with made[-1].open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_what_is_done_is_skipped_and_another_mask_is_not_written_over_it(
    stores: list[Path], config: ExportConfig, run: RunConfig, mask: np.ndarray
) -> None:
    _, made = export_stores(stores, config, RunContext(run))
    times = [p.stat().st_mtime_ns for p in made[:-1]]
    report, again = export_stores(stores, config, RunContext(run))
    assert again == made
    assert {r["status"] for r in report.rows if r["item"] != "areas.csv"} == {"skipped"}
    assert [p.stat().st_mtime_ns for p in made[:-1]] == times
    write_mask(SlideStore(stores[0]), "map", np.roll(mask, 16, 1), digest="other")
    with pytest.raises(ConfigError, match=r"a\.geojson was made from other inputs; .*--folder.*--overwrite"):
        export_stores(stores, config, RunContext(run))
    report, _ = export_stores(stores, config, RunContext(run, overwrite=True))
    assert [r["status"] for r in report.rows[:-1]] == ["done"] * 3 + ["skipped"] * 3
    np.testing.assert_array_equal(tifffile.imread(made[1]), np.roll(mask, 16, 1))


def test_a_file_that_was_changed_since_is_found_when_it_is_read_back(
    stores: list[Path], config: ExportConfig, run: RunConfig
) -> None:
    _, made = export_stores(stores, config, RunContext(run))
    lines = made[0].read_text().splitlines(keepends=True)
    made[0].write_text("".join([*lines[:3], *lines[4:]]))
    report, left = export_stores(stores, config, RunContext(run))
    assert [r["item"] for r in report.of("failed")] == ["a.geojson"]
    assert made[0] not in left
    assert report.exit_code == 1
    report, _ = export_stores(stores, config, RunContext(run))
    assert report.exit_code == 0, "what failed is written again"
    assert [r["item"] for r in report.of("done")] == ["a.geojson", "areas.csv"]


def test_a_store_without_the_mask_costs_only_itself(
    tmp_path: Path, stores: list[Path], config: ExportConfig, run: RunConfig, mask: np.ndarray
) -> None:
    bare = mask_store(tmp_path / "bare.zarr", {"tissue": np.ones_like(mask)}).path
    config = replace(config, formats=("ome-tiff",))
    report, made = export_stores([bare, *stores], config, RunContext(replace(run, max_failed="1")))
    assert [r["item"] for r in report.of("failed")] == ["bare.ome.tif"]
    assert [p.name for p in made] == ["a.ome.tif", "b.ome.tif"]
    assert report.exit_code == 0


def test_an_unknown_format_and_a_comparison_that_cannot_be_are_refused(stores: list[Path], run: RunConfig) -> None:
    for options, message in (
        (
            ExportConfig(masks="map", formats=("pdf",)),
            "export.formats: 'pdf' is not known; choose from areas",
        ),
        (ExportConfig(masks="map", verify=True, tolerance_um=2.0), "only an exact GeoJSON can be compared"),
        (ExportConfig(masks="map", formats=("dicom-seg",), dicom_kind="rle"), "'rle': expected binary or labelmap"),
        (ExportConfig(masks="map", formats=("dicom-seg",), dicom_codes=("a=1",)), "code 'a=1': expected CLASS="),
    ):
        with pytest.raises(ConfigError, match=message):
            export_stores(stores, options, RunContext(run))
    assert not Path(run.runs).exists(), "before any work"
