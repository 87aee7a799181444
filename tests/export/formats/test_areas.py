"""Areas against a slow count, for every class of every slide."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from support.masked import NAMES, mask_store

from wsipipe.errors import ConfigError, StoreError
from wsipipe.export.formats.areas import COLUMNS, write_areas

MM2 = 0.5 * 0.5 / 1e6


def test_areas_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = {i: rng.choice(np.array([0, 1, 2, 255], np.uint8), (600, 300)) for i in "ab"}
    tissues = {i: rng.choice(np.array([0, 1, 1, 255], np.uint8), (600, 300)) for i in "ab"}
    stores = [mask_store(tmp_path / f"{i}.zarr", {"net": masks[i], "tissue": tissues[i]}) for i in "ab"]
    path = write_areas(iter(stores), "net", tmp_path / "tables" / "areas.csv")
    assert [p.name for p in path.parent.iterdir()] == ["areas.csv"]
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    expected = [(i, v) for i in "ab" for v in (1, 2, 3)]
    assert [(r["slide_id"], r["name"], r["class"]) for r in rows] == [(i, "net", NAMES[v]) for i, v in expected]
    for row, (i, value) in zip(rows, expected, strict=True):
        tissue = tissues[i] == 1
        on_tissue = int(((masks[i] == value) & tissue).sum())
        assert float(row["area_mm2"]) == pytest.approx(int((masks[i] == value).sum()) * MM2, abs=1e-6)
        assert float(row["share_of_tissue"]) == pytest.approx(on_tissue / tissue.sum(), abs=1e-6)
        assert float(row["tissue_mm2"]) == pytest.approx(int(tissue.sum()) * MM2, abs=1e-6)
        assert float(row["unknown_mm2"]) == pytest.approx(int(((masks[i] == 255) & tissue).sum()) * MM2, abs=1e-6)
    assert float(rows[0]["area_mm2"]) > 0
    assert rows[2]["share_of_tissue"] == "0.000000"  # no fat


def test_a_slide_without_tissue_has_no_shares(tmp_path: Path) -> None:
    zeros = np.zeros((20, 20), np.uint8)
    store = mask_store(tmp_path / "a.zarr", {"net": zeros, "tissue": zeros})
    rows = list(csv.DictReader(write_areas([store], "net", tmp_path / "areas.csv").read_text().splitlines()))
    assert {(r["share_of_tissue"], r["tissue_mm2"]) for r in rows} == {("", "0.000000")}


def test_errors_leave_what_was_there(tmp_path: Path) -> None:
    zeros = np.zeros((20, 20), np.uint8)
    store = mask_store(tmp_path / "a.zarr", {"net": zeros, "tissue": zeros})
    path = tmp_path / "areas.csv"
    path.write_text("old")
    with pytest.raises(StoreError, match="no labels/gone; found net, tissue"):
        write_areas([store], "gone", path)
    with pytest.raises(ConfigError, match="are stores of one slide, a; name one"):
        write_areas([store, store], "net", path)
    assert path.read_text() == "old"
