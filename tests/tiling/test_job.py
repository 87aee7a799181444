"""A job: what its store depends on, the plan on disk, and what is kept open for it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from support.tilings import CONFIG

from wsipipe.config.options import TileConfig
from wsipipe.errors import SlideError, StoreError
from wsipipe.geometry import Grid
from wsipipe.slides import SlideFile, open_slide
from wsipipe.slides.level import BadTile
from wsipipe.store import PatchTable
from wsipipe.tiling import job as jobs
from wsipipe.tiling.job import Plan, Recipe, TileJob, bad_of_rows, bad_rows, discard, record_file, records_of, slide_of
from wsipipe.tissue.detect import TissueMask

OTHER_PIXELS: tuple[dict[str, Any], ...] = (
    {"mpp": 1.0}, {"codec": "zstd"}, {"quality": 80}, {"tissue_mpp": 4.0}, {"min_area_um2": 5.0}, {"qc": False},
    {"fast_resample": True},
)  # fmt: skip
OTHER_LATTICE: tuple[dict[str, Any], ...] = ({"patch_px": 64}, {"stride_px": 64}, {"min_tissue": 0.5})
SAME: tuple[dict[str, Any], ...] = (
    {"max_corrupt": 0.5},
    {"qc_image": True},
    {"tissue": "masks"},
    {"stride_px": 128},
    {"normalise_stain": True},
)


@pytest.fixture
def job(svs_path: Path, tmp_path: Path) -> TileJob:
    return TileJob("blob", SlideFile(svs_path), CONFIG, tmp_path / "stores" / "blob.zarr")


def recipe(job: TileJob, **options: Any) -> Recipe:
    return Recipe.of(replace(job, config=replace(job.config, **options)), slide_of(job))


def test_every_option_is_known_to_decide_pixels_lattice_or_neither():
    known = {k for option in (*OTHER_PIXELS, *OTHER_LATTICE, *SAME, {"mpp_override": 0}) for k in option}
    assert known == set(TileConfig.__dataclass_fields__)


def test_a_recipe_changes_with_what_decides_the_pixels(job: TileJob):
    plain = recipe(job)
    for option in OTHER_PIXELS:
        other = recipe(job, **option)
        assert other.pixels != plain.pixels, option
        assert other.patches != plain.patches, option
    for option in OTHER_LATTICE:
        other = recipe(job, **option)
        assert other.pixels == plain.pixels, option
        assert other.patches != plain.patches, option
    for option in SAME:
        assert recipe(job, **option) == plain, option


def test_a_recipe_changes_with_the_resolution_and_the_mask(job: TileJob, tmp_path: Path):
    plain = recipe(job)
    other = open_slide(job.file.path, "blob", 0.49)
    assert Recipe.of(job, other).pixels != plain.pixels
    other.close()
    digests = set()
    for value in (0, 255):
        mask = tmp_path / f"{value}.png"
        mask.write_bytes(imagecodecs.png_encode(np.full((9, 12), value, np.uint8)))
        digests.add(Recipe.of(replace(job, file=replace(job.file, mask=mask)), slide_of(job)).pixels)
        mask.rename(tmp_path / "moved.png")
        moved = replace(job, file=replace(job.file, mask=tmp_path / "moved.png"))
        digests.add(Recipe.of(moved, slide_of(job)).pixels)
    assert len(digests | {plain.pixels}) == 3  # by its content, not by its name


def test_a_mask_that_cannot_be_read_is_a_fault_of_its_slide(job: TileJob, tmp_path: Path):
    lost = replace(job, file=replace(job.file, mask=tmp_path / "lost.png"))
    with pytest.raises(SlideError, match=r"lost\.png: the tissue mask cannot be read \(No such file"):
        Recipe.of(lost, slide_of(job))


def test_jobs_travel_small_and_equal(job: TileJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    sent = pickle.dumps(job)
    assert len(sent) < 2000
    assert pickle.loads(sent) == job
    assert hash(pickle.loads(sent)) == hash(job)
    monkeypatch.chdir(tmp_path)
    near = TileJob("a", SlideFile(Path("a.svs")), CONFIG, Path("stores/a.zarr"), qc_image=Path("a.png"))
    far = near.absolute()
    assert (far.file.path, far.target) == (tmp_path / "a.svs", tmp_path / "stores/a.zarr")
    assert (far.qc_image, far.file.mask) == (tmp_path / "a.png", None)
    assert replace(near, file=replace(near.file, mask=Path("m.png"))).absolute().file.mask == tmp_path / "m.png"


def plan() -> Plan:
    grid = Grid((1000, 800), (0.5, 0.25), (1.0, 2.0), 64, 32, (16, 32))
    table = PatchTable(grid, np.array([[0, 1]], np.int32), np.ones(1, np.float32), np.zeros(1, np.uint8))
    bits = np.array([[True, False]])
    return Plan(
        Recipe("p", "q"), grid, TissueMask(np.eye(3, dtype=np.uint8), 8, "note"), table, bits, {BadTile(0, 1, 2): "w"}
    )


def test_a_plan_is_read_as_it_was_written(tmp_path: Path):
    plan().save(tmp_path / "plan.npz")
    found, made = Plan.load(tmp_path / "plan.npz"), plan()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.npz"]
    assert (found.recipe, found.grid, found.bad) == (made.recipe, made.grid, made.bad)
    assert (found.tissue.step_px, found.tissue.note) == (8, "note")
    for a, b in (
        (found.tissue.kind, made.tissue.kind),
        (found.table.cell, made.table.cell),
        (found.chunks, made.chunks),
    ):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("length", [0, 1, 100, -100, -1])
def test_a_plan_that_is_cut_off_is_no_plan(tmp_path: Path, length: int):
    plan().save(tmp_path / "plan.npz")
    whole = (tmp_path / "plan.npz").read_bytes()
    (tmp_path / "plan.npz").write_bytes(whole[:length])
    with pytest.raises(StoreError, match="not a plan that can be read"):
        Plan.load(tmp_path / "plan.npz")


def test_a_plan_with_a_flipped_bit_is_no_plan_or_the_same(tmp_path: Path):
    plan().save(tmp_path / "plan.npz")
    whole = (tmp_path / "plan.npz").read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 16
        (tmp_path / "plan.npz").write_bytes(damaged)
        try:
            found = Plan.load(tmp_path / "plan.npz")
        except StoreError:
            continue
        assert (found.grid, found.bad) == (plan().grid, plan().bad)


def test_bad_tiles_are_rows_in_order():
    bad = {BadTile(1, 0, 0): "b", BadTile(0, 2, 1): "a"}
    assert bad_rows(bad) == [[0, 2, 1, "a"], [1, 0, 0, "b"]]
    assert bad_of_rows(bad_rows(bad)) == bad


def test_records_are_found_by_their_shard(job: TileJob):
    assert records_of(job) == {}
    for level, shard in ((0, (10, 2)), (1, (0, 0))):
        record_file(job, level, shard).parent.mkdir(parents=True, exist_ok=True)
        record_file(job, level, shard).write_text(f'{{"stored": {level}}}')
    (job.aside / "written" / ".0.0.0.json.partial").write_text("{")
    assert records_of(job) == {(0, 10, 2): {"stored": 0}, (1, 0, 0): {"stored": 1}}


def test_discard_removes_all_that_grew_aside_and_nothing_else(job: TileJob):
    stores = job.target.parent
    other = replace(job, target=stores / "blob.zarr2.zarr")
    strange = replace(job, target=stores / "[a]*.zarr")
    for folder in (
        job.target, job.aside, other.aside, strange.aside,
        stores / "..blob.zarr.partial.labels.tissue.partial", stores / "..blob.zarr.partial.patches.1_1.partial",
        stores / "..[a]*.zarr.partial.labels.tissue.partial", stores / ".blob.zarr.labels.mine.partial",
    ):  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (stores / "..blob.zarr.partial.lock").touch()
    discard(job)
    assert sorted(p.name for p in stores.iterdir()) == [
        "..[a]*.zarr.partial.labels.tissue.partial", ".[a]*.zarr.partial", ".blob.zarr.labels.mine.partial",
        ".blob.zarr2.zarr.partial", "blob.zarr",
    ]  # fmt: skip
    discard(strange)
    assert ".[a]*.zarr.partial" not in [p.name for p in stores.iterdir()]
    assert len(list(stores.iterdir())) == 3
    discard(job)


def test_slides_are_kept_open_until_they_are_forgotten(job: TileJob):
    jobs.forget()
    assert slide_of(job) is slide_of(pickle.loads(pickle.dumps(job)))
    first = slide_of(job)
    jobs.forget()
    assert slide_of(job) is not first
    assert slide_of(replace(job, call="another run")) is not slide_of(job)
