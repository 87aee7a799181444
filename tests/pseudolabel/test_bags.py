"""Bags: a row of labels.csv becomes its instances, and a row that cannot is named with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.textures import tiled_pictures, tissue

from wsipipe.errors import LabelsError
from wsipipe.geometry import Window
from wsipipe.labels import Classes, LabelTable, WeakLabel
from wsipipe.pseudolabel.bags import Bag, make_bags
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.store import SlideStore

Box = tuple[float, float, float, float]
GRID = InstanceGrid(16, 32, 2)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlideStore]:
    """`half`: 320 x 256 px, tissue left of x = 192. `bare`: glass. `fine`: tissue at 0.48 um/px."""
    half = np.full((256, 320, 3), 243, np.uint8)
    half[:, :192] = tissue((192, 256))
    pictures = {"half": half, "bare": np.full((128, 128, 3), 243, np.uint8)}
    paths = tiled_pictures(tmp_path_factory.mktemp("bags"), pictures, patch_px=64)
    paths |= tiled_pictures(
        tmp_path_factory.mktemp("fine"), {"fine": tissue((401, 401))}, patch_px=64, mpp_override=0.48
    )
    return {k: SlideStore(p) for k, p in paths.items()}


Maker = Callable[..., tuple[list[Bag], list[str]]]


@pytest.fixture
def bags_of(stores: dict[str, SlideStore]) -> Maker:
    """`bags_of(("half", box, present), ..)`: lines count from 2, as in a file."""

    def make(
        *rows: tuple[str, Box | None, tuple[int, ...]], min_tissue: float = 0.5, instance_grid: InstanceGrid = GRID
    ) -> tuple[list[Bag], list[str]]:
        labels = tuple(WeakLabel(i + 2, s, p, box, f"of {s}") for i, (s, box, p) in enumerate(rows))
        table = LabelTable(Path("labels.csv"), Classes(("a", "b")), labels)
        return make_bags(table, labels, stores, instance_grid, min_tissue)

    return make


def test_a_slide_row_holds_every_instance_with_tissue_row_by_row(bags_of: Maker):
    ((bag,), notes) = bags_of(("half", None, (1, 0)))
    assert bag.xy_px.dtype == np.int32
    assert bag.xy_px.tolist() == [[x, y] for y in range(0, 256, 16) for x in range(0, 192, 16)]
    assert (bag.id, bag.label, bag.patch, bag.bounds, bag.patient) == (
        "half",
        (1, 0),
        False,
        bag.store.grid.frame,
        "of half",
    )
    assert notes == []


def test_a_patch_row_gives_its_instances_row_by_row(bags_of: Maker):
    ((bag,), _) = bags_of(("half", (64, 128, 64, 64), (0, 1)))
    assert bag.xy_px.tolist() == [[64 + k % 4 * 16, 128 + k // 4 * 16] for k in range(16)]
    assert (bag.id, bag.label, bag.patch, bag.bounds) == ("half@64,128", (0, 1), True, Window(64, 128, 64, 64))


def test_a_region_row_has_instances_from_its_own_corner(bags_of: Maker):
    ((bag,), _) = bags_of(("half", (5, 7, 40, 90), (1, 1)))
    assert bag.xy_px.tolist() == [[x, y] for y in range(7, 7 + 80, 16) for x in (5, 21)]
    assert not bag.patch
    assert bag.bounds == Window(5, 7, 40, 90)


@pytest.mark.parametrize(
    ("size", "patch"), [((64, 64), True), ((65, 63), True), ((62, 64), False), ((64, 128), False), ((128, 128), False)]
)
def test_a_patch_is_known_by_its_size_up_to_rounding(bags_of: Maker, size: tuple[int, int], patch: bool):
    ((bag,), _) = bags_of(("half", (0, 0, *size), (1, 0)))
    assert bag.patch == patch


def test_a_patch_that_rounding_made_short_keeps_all_its_instances(bags_of: Maker, stores: dict[str, SlideStore]):
    """The level-0 box of a patch is rounded to whole pixels by whoever writes the labels."""
    grid = stores["fine"].grid
    assert grid.scale[0] == pytest.approx(0.5 / 0.48)
    side = int(64 * grid.scale[0])
    short = 0
    for row, col, window in grid.windows():
        x, y = (round(v) for v in grid.to_px0((window.x_px, window.y_px)))
        if max(x, y) + side > 401:
            continue
        asked = grid.window_of_px0((x, y, side, side))
        short += min(asked.width_px, asked.height_px) < 64
        ((bag,), _) = bags_of(("fine", (x, y, side, side), (1, 0)))
        assert bag.patch
        assert len(bag.xy_px) == 16, (row, col)
        assert (bag.bounds.width_px, bag.bounds.height_px) == (64, 64)
    assert short > 3


@pytest.mark.parametrize("min_tissue", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("box", [None, (120, 0, 128, 64), (140, 10, 100, 100)])
def test_instances_without_enough_tissue_are_left_out_of_their_bag(
    bags_of: Maker, stores: dict[str, SlideStore], min_tissue: float, box: Box | None
):
    ((bag,), notes) = bags_of(("half", box, (1, 0)), min_tissue=min_tissue)
    mask = stores["half"].labels("tissue").read(Window(0, 0, 320, 256)) == 1
    x0, y0, width, height = box or (0, 0, 320, 256)
    corners = [(x, y) for y in range(y0, y0 + height - 15, 16) for x in range(x0, x0 + width - 15, 16)]
    wanted = [(x, y) for x, y in corners if mask[y : y + 16, x : x + 16].mean() >= min_tissue]
    assert [tuple(v) for v in bag.xy_px.tolist()] == wanted
    assert 0 < len(wanted) < len(corners)
    assert notes == []


def test_bags_without_tissue_become_notes_with_their_line(bags_of: Maker):
    bags, notes = bags_of(("bare", None, (0, 0)), ("half", None, (1, 0)), ("half", (256, 0, 64, 64), (0, 0)))
    assert [b.id for b in bags] == ["half"]
    assert notes == ["line 2 (bare): no tissue, skipped", "line 4 (half@256,0): no tissue, skipped"]


def test_a_region_may_reach_over_the_border_beyond_which_there_is_no_tissue(bags_of: Maker):
    ((bag,), _) = bags_of(("half", (100, 200, 500, 500), (1, 0)))
    assert bag.xy_px[:, 1].max() == 248, "an instance that is half outside has half of the tissue"
    ((bag,), _) = bags_of(("half", (100, 200, 500, 500), (1, 0)), min_tissue=0.6)
    assert bag.xy_px[:, 1].max() == 232


def test_misplaced_regions_are_all_named_at_once_with_their_lines(bags_of: Maker):
    with pytest.raises(LabelsError) as error:
        bags_of(
            ("half", (320, 0, 64, 64), (1, 0)),
            ("half", (0, 0, 64, 64), (0, 0)),
            ("half", (0, 0, 15, 64), (1, 0)),
            ("half", (0, 400, 64, 64), (1, 0)),
        )
    problems = error.value.problems
    assert [p.split(":")[0] for p in problems] == ["line 2", "line 4", "line 5"]
    assert "outside slide half (320 x 256 px at the working mpp)" in problems[0]
    assert "smaller than one instance (16 px at the working mpp)" in problems[1]
    assert "outside slide half" in problems[2]


def test_a_region_is_given_in_level_0_pixels(bags_of: Maker, stores: dict[str, SlideStore]):
    ((bag,), _) = bags_of(("fine", (150, 75, 100, 200), (1, 0)))
    scale = stores["fine"].grid.scale[0]
    assert scale == pytest.approx(0.5 / 0.48)
    assert bag.bounds == Window(144, 72, 96, 192)
