"""The cascade: crops of a patch, the instances inside each, and picks traced back to the patch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.textures import tiled_pictures, tissue

from wsipipe.geometry import Window
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.methods.camel.cascade import coarse_grid, intermediate_crops, sub_bags
from wsipipe.pseudolabel.methods.camel.selectors import Pick
from wsipipe.store import SlideStore

GRID = InstanceGrid(16, 32, 2)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Bag:
    """A patch of 4 x 4 instances whose corner lies at (64, 0), with two classes, the first present."""
    paths = tiled_pictures(tmp_path_factory.mktemp("patch"), {"p": tissue((128, 64))}, patch_px=64)
    xy = np.array([(64 + k % 4 * 16, k // 4 * 16) for k in range(16)], np.int32)
    return Bag("p", SlideStore(paths["p"]), xy, (1, 0), True, Window(64, 0, 64, 64))


def test_crops_are_squares_of_instances_row_by_row_and_part_the_patch(bag: Bag):
    crops = intermediate_crops(bag, GRID, 2)
    assert crops.bag.xy_px.tolist() == [[64, 0], [96, 0], [64, 32], [96, 32]]
    assert [i.tolist() for i in crops.inside] == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert coarse_grid(GRID, 2) == InstanceGrid(32, 32, 2)
    assert (crops.bag.bounds, crops.bag.label) == (bag.bounds, bag.label)


def test_a_crop_holds_exactly_the_instances_that_lie_in_it_and_a_glass_crop_is_none(bag: Bag):
    keep = [0, 1, 7, 14]
    some = replace(bag, xy_px=bag.xy_px[keep])
    crops = intermediate_crops(some, GRID, 2)
    assert crops.bag.xy_px.tolist() == [[64, 0], [96, 0], [96, 32]], "the third crop has no tissue"
    for corner, inside in zip(crops.bag.xy_px, crops.inside, strict=True):
        wanted = [j for j, at in enumerate(some.xy_px) if ((at >= corner) & (at < corner + 32)).all()]
        assert inside.tolist() == wanted


def test_picked_crops_become_bags_whose_classes_are_known_only_where_picked_or_absent(bag: Bag):
    crops = [intermediate_crops(bag, GRID, 2)] * 2
    labels = torch.tensor([[0, 0], [1, 0], [1, 1]])
    picks = [Pick(0, 3, 0, 1), Pick(1, 0, 1, 1), Pick(1, 0, 0, 1), Pick(0, 3, 0, 1), Pick(0, 1, 1, 0)]
    inside = sub_bags(crops, [1, 2], picks, labels)
    nan = float("nan")
    assert [(b, rows.tolist()) for b, rows in inside.where] == [
        (1, [2, 3, 6, 7]),
        (1, [10, 11, 14, 15]),
        (2, [0, 1, 4, 5]),
    ]
    np.testing.assert_array_equal(inside.labels.numpy(), [[nan, 0], [1, 0], [1, 1]])


def test_values_and_picks_of_a_crop_belong_to_its_patch(bag: Bag):
    inside = sub_bags([intermediate_crops(bag, GRID, 2)], [1], [Pick(0, 2, 0, 1)], torch.tensor([[0, 0], [1, 0]]))
    values = [torch.zeros(16, 3), torch.arange(48.0).view(16, 3)]
    (own,) = inside.of(values)
    assert own[:, 0].tolist() == [24, 27, 36, 39], "instances 8, 9, 12 and 13"
    assert inside.back([Pick(0, 3, 0, 1)]) == [Pick(1, 13, 0, 1)]


def test_nothing_picked_gives_no_bags(bag: Bag):
    inside = sub_bags([intermediate_crops(bag, GRID, 2)], [0], [], torch.tensor([[1, 0]]))
    assert inside.where == []
