"""A network applied to whole bags: small bags together, with the same result."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.textures import tiled_pictures, tissue
from torch import Tensor, nn

from wsipipe.geometry import Window
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.shared import instances
from wsipipe.pseudolabel.shared.classifier import apply_in_batches
from wsipipe.pseudolabel.shared.instances import apply_to_bags
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

COMPUTE = ComputeContext(torch.device("cpu"))


@pytest.fixture(scope="module")
def strip(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 256 x 64 px of tissue."""
    paths = tiled_pictures(tmp_path_factory.mktemp("strip"), {"strip": tissue((256, 64))}, patch_px=64)
    return SlideStore(paths["strip"])


GRID = InstanceGrid(16, 16, 1)


def patch_bag(store: SlideStore, column: int, label: tuple[int, ...]) -> Bag:
    xy = np.array([(column * 64 + k % 4 * 16, k // 4 * 16) for k in range(16)], np.int32)
    return Bag(f"p{column}", store, xy, label, True, Window(column * 64, 0, 64, 64))


class Mean(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("together", [1, 20, 1000])
def test_a_network_is_applied_bag_by_bag_however_many_go_together(
    strip: SlideStore, together: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(instances, "INSTANCES_PER_CALL", together)
    bags = [patch_bag(strip, c, (0,)) for c in range(4)]
    got = apply_to_bags(Mean(), bags, GRID, 2, COMPUTE, "test")
    assert [len(v) for v in got] == [16] * 4
    for bag, values in zip(bags, got, strict=True):
        alone = apply_in_batches(Mean(), read_crops(bag.store, bag.xy_px, GRID, bag.bounds), COMPUTE.device, 2)
        torch.testing.assert_close(values, alone)


@given(st.lists(st.integers(1, 30), max_size=12))
def test_small_bags_go_together_and_every_bag_goes_once(sizes: list[int]):
    calls = []

    def apply(model: nn.Module, crops: NDArray[np.int64], on: torch.device, views: int) -> Tensor:
        calls.append(crops.tolist())
        return torch.from_numpy(crops)

    bags = [SimpleNamespace(store=None, bounds=None, xy_px=np.full(n, i)) for i, n in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "INSTANCES_PER_CALL", 20)
        patch.setattr(instances, "read_crops", lambda store, xy_px, *_: xy_px)
        patch.setattr(instances, "apply_in_batches", apply)
        got = apply_to_bags(Mean(), bags, GRID, 1, COMPUTE, "test")
    assert [v.tolist() for v in got] == [[i] * n for i, n in enumerate(sizes)]
    assert all(len(call) <= 20 or len(set(call)) == 1 for call in calls)
