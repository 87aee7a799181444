"""A format is one module of the folder: named, described, written, read back and skipped like the others."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from support.masked import mask_store
from support.tiny_chain import wsipipe

from wsipipe.config.options import ExportConfig, RunConfig
from wsipipe.errors import ConfigError
from wsipipe.export import formats
from wsipipe.export.formats import Checked, FileFormat, TableFormat, Verifiable
from wsipipe.export.stage import run as export_stores
from wsipipe.runtime.context import RunContext

NPY = '''\
"""NumPy array of the mask."""

import numpy as np

from wsipipe.errors import StoreError

SUFFIX = ".npy"
BY_DEFAULT = False


def write(store, path, options):
    np.save(path, store.labels(options.masks).read(store.grid.frame))


def verify(store, path, options):
    if (np.load(path) != store.labels(options.masks).read(store.grid.frame)).any():
        raise StoreError(f"{path}: differs from the mask")
'''


@pytest.fixture
def npy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file more in the folder of formats."""
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "plain_npy.py").write_text(NPY)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "wsipipe.export.formats.plain_npy", raising=False)


@pytest.mark.usefixtures("npy")
def test_one_file_adds_a_format(tmp_path: Path) -> None:
    assert formats.names() == ["areas", "dicom-seg", "geojson", "ome-tiff", "overlay", "plain-npy"]
    assert formats.summaries()["plain-npy"] == "NumPy array of the mask"
    assert "plain-npy" not in formats.load(), "it is not written by default"
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    store = mask_store(tmp_path / "a.zarr", {"tissue": np.ones_like(mask), "map": mask})
    options = ExportConfig(masks="map", folder=str(tmp_path / "out"), formats=("plain-npy",), verify=True)
    context = RunContext(RunConfig(runs=str(tmp_path / "runs")))
    for status in ("done", "skipped"):
        report, made = export_stores([store.path], options, context)
        assert [r["status"] for r in report.rows] == [status]
        assert made == [tmp_path / "out" / "map" / "a.npy"]
        np.testing.assert_array_equal(np.load(made[0]), mask)
    np.save(made[0], mask + 1)
    report, _ = export_stores([store.path], options, context)
    assert report.of("failed")[0]["reason"].endswith("differs from the mask")


def test_what_is_written_by_default_needs_nothing_but_the_store() -> None:
    assert list(formats.load()) == ["areas", "geojson", "ome-tiff", "overlay"]
    assert list(formats.load(("overlay", "dicom-seg", "overlay"))) == ["overlay", "dicom-seg"]
    with pytest.raises(ConfigError, match="'pdf' is not known; choose from areas, dicom-seg, geojson"):
        formats.load(("pdf",))


def test_every_format_is_a_file_per_slide_or_one_for_all() -> None:
    for name, module in formats.load(formats.names()).items():
        assert isinstance(module, FileFormat) != isinstance(module, TableFormat), name
    able = {n: m for n, m in formats.load(formats.names()).items() if isinstance(m, Verifiable)}
    assert list(able) == ["dicom-seg", "geojson", "ome-tiff"]
    assert [n for n, m in able.items() if isinstance(m, Checked)] == ["dicom-seg", "geojson"]


def test_help_lists_every_format() -> None:
    text = " ".join(wsipipe("export", "--help").stdout.split())
    for name, line in formats.summaries().items():
        assert f"{name} {line}" in text
