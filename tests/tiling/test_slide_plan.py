"""A plan on disk: read as it was written, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsipipe.errors import StoreError
from wsipipe.geometry import Grid
from wsipipe.slides.level import BadTile
from wsipipe.store import PatchTable
from wsipipe.tiling.recipe import Recipe
from wsipipe.tiling.slide_plan import SlidePlan
from wsipipe.tissue.detect import TissueMask


def plan() -> SlidePlan:
    grid = Grid((1000, 800), (0.5, 0.25), (1.0, 2.0), 64, 32, (16, 32))
    table = PatchTable(grid, np.array([[0, 1]], np.int32), np.ones(1, np.float32), np.zeros(1, np.uint8))
    bits = np.array([[True, False]])
    return SlidePlan(
        Recipe("p", "q"), grid, TissueMask(np.eye(3, dtype=np.uint8), 8, "note"), table, bits, {BadTile(0, 1, 2): "w"}
    )


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.npz")
    found, made = SlidePlan.load(tmp_path / "plan.npz"), plan()
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
def test_a_plan_that_is_cut_off_is_no_plan(tmp_path: Path, length: int) -> None:
    plan().save(tmp_path / "plan.npz")
    whole = (tmp_path / "plan.npz").read_bytes()
    (tmp_path / "plan.npz").write_bytes(whole[:length])
    with pytest.raises(StoreError, match="the plan is missing or damaged"):
        SlidePlan.load(tmp_path / "plan.npz")


def test_a_plan_with_a_flipped_bit_is_no_plan_or_the_same(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.npz")
    whole = (tmp_path / "plan.npz").read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 16
        (tmp_path / "plan.npz").write_bytes(damaged)
        try:
            found = SlidePlan.load(tmp_path / "plan.npz")
        except StoreError:
            continue
        assert (found.grid, found.bad) == (plan().grid, plan().bad)
