"""A job: small and picklable, with absolute paths on request; its unfinished store is removed without a trace."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from support.tilings import CONFIG

from wsipipe.slides import SlideFile
from wsipipe.tiling.job import TileJob, remove_partial


def test_jobs_are_pickled_small_and_equal(job: TileJob) -> None:
    sent = pickle.dumps(job)
    assert len(sent) < 2000
    assert pickle.loads(sent) == job
    assert hash(pickle.loads(sent)) == hash(job)


def test_absolute_paths_are_those_seen_from_this_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    near = TileJob("a", SlideFile(Path("a.svs")), CONFIG, Path("stores/a.zarr"), qc_image=Path("a.png"))
    far = near.absolute()
    assert (far.file.path, far.target) == (tmp_path / "a.svs", tmp_path / "stores/a.zarr")
    assert (far.qc_image, far.file.mask) == (tmp_path / "a.png", None)
    assert replace(near, file=replace(near.file, mask=Path("m.png"))).absolute().file.mask == tmp_path / "m.png"


def test_remove_partial_removes_the_unfinished_store_and_nothing_else(job: TileJob) -> None:
    stores = job.target.parent
    other = replace(job, target=stores / "blob.zarr2.zarr")
    strange = replace(job, target=stores / "[a]*.zarr")
    for folder in (
        job.target, job.partial, other.partial, strange.partial,
        stores / "..blob.zarr.partial.labels.tissue.partial", stores / "..blob.zarr.partial.patches.1_1.partial",
        stores / "..[a]*.zarr.partial.labels.tissue.partial", stores / ".blob.zarr.labels.mine.partial",
    ):  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (stores / "..blob.zarr.partial.lock").touch()
    remove_partial(job)
    assert sorted(p.name for p in stores.iterdir()) == [
        "..[a]*.zarr.partial.labels.tissue.partial", ".[a]*.zarr.partial", ".blob.zarr.labels.mine.partial",
        ".blob.zarr2.zarr.partial", "blob.zarr",
    ]  # fmt: skip
    remove_partial(strange)
    assert ".[a]*.zarr.partial" not in [p.name for p in stores.iterdir()]
    assert len(list(stores.iterdir())) == 3
    remove_partial(job)
    assert len(list(stores.iterdir())) == 3
