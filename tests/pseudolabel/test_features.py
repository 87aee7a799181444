"""Features of bags: what the encoder makes of each crop, read from the stores the second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.textures import tiled_pictures, tissue
from torch import Tensor, nn

from wsipipe.geometry import Window
from wsipipe.nn.encoders import normalise
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.features import embed
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore
from wsipipe.store.features import feature_names

CPU = ComputeContext(torch.device("cpu"))
GRID = InstanceGrid(16, 32, 2)


class Counting(nn.Module):
    """Three numbers of each crop, and how many crops it was given (the probe of the width aside)."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))
        self.crops = 0

    def forward(self, x: Tensor) -> Tensor:
        self.crops += len(x) if x.any() else 0
        return torch.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0], x[:, 2, -1, -1]], 1) * self.gain


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    """A slide of 192 x 128 px of tissue: 12 x 8 cells."""
    return SlideStore(tiled_pictures(tmp_path, {"s": tissue((192, 128))}, patch_px=64)["s"])


def bag(store: SlideStore, xy: list[tuple[int, int]], bounds: Window | None = None) -> Bag:
    return Bag("b", store, np.array(xy, np.int32).reshape(-1, 2), (1,), bounds is not None, bounds or store.grid.frame)


def slide_bag(store: SlideStore) -> Bag:
    return bag(store, [(x, y) for y in range(0, 128, 16) for x in range(0, 192, 16)])


def straight(b: Bag, gain: float = 1.0) -> Tensor:
    """What the encoder says of the crops of a bag, rounded to float16."""
    return Counting(gain)(normalise(torch.from_numpy(read_crops(b.store, b.xy_px, GRID, b.bounds)))).half().float()


def boxes(store: SlideStore) -> list[Bag]:
    """A region on the grid, one off it, and one without any instance of the grid."""
    on = Window(32, 32, 96, 64)
    beside = Window(40, 32, 96, 64)
    return [
        bag(store, [(x, y) for y in range(w.y_px, 96, 16) for x in range(w.x_px, w.x_px + 96, 16)], w)
        for w in (on, beside)
    ] + [bag(store, [(3, 5)])]


def test_features_are_what_the_encoder_makes_of_each_crop(store: SlideStore):
    bags = [slide_bag(store), *boxes(store)]
    for name in ("", "net"):
        for got, b in zip(embed(Counting(), bags, GRID, CPU, name), bags, strict=True):
            torch.testing.assert_close(got, straight(b), atol=0, rtol=2e-3)


def test_the_second_time_nothing_is_computed_and_the_answer_is_the_same(store: SlideStore):
    first, again = Counting(), Counting()
    features = embed(first, [slide_bag(store)], GRID, CPU, "net")
    assert first.crops == 96
    same = embed(again, [slide_bag(SlideStore(store.path))], GRID, CPU, "net")
    assert again.crops == 0
    assert torch.equal(features[0], same[0])
    assert len(feature_names(store)) == 1
    assert feature_names(store)[0][0].startswith("net-")
    assert feature_names(store)[0][1] == "16_32_2"


def test_a_region_on_the_grid_reads_what_lies_inside_its_bounds_and_computes_its_rim(store: SlideStore):
    embed(Counting(), [slide_bag(store)], GRID, CPU, "net")
    encoder = Counting()
    region = boxes(store)[0]
    embed(encoder, [region], GRID, CPU, "net")
    assert encoder.crops == 24 - 8, "6 x 4 instances, of which 4 x 2 see nothing beyond the bounds"


def test_a_region_fills_its_part_and_a_slide_the_rest(store: SlideStore):
    alone = InstanceGrid(16, 16, 1)
    region, encoder = boxes(store)[0], Counting()
    embed(encoder, [region], alone, CPU, "net")
    assert encoder.crops == 24
    embed(encoder, [slide_bag(store)], alone, CPU, "net")
    assert encoder.crops == 96


def test_other_weights_other_grids_and_other_pixels_are_kept_apart(store: SlideStore, tmp_path: Path):
    embed(Counting(), [slide_bag(store)], GRID, CPU, "net")
    other = Counting(2.0)
    torch.testing.assert_close(embed(other, [slide_bag(store)], GRID, CPU, "net")[0], straight(slide_bag(store), 2.0))
    assert other.crops == 96
    narrow = Counting()
    embed(narrow, [slide_bag(store)], InstanceGrid(16, 16, 1), CPU, "net")
    assert narrow.crops == 96
    assert len(feature_names(store)) == 3
    retiled = SlideStore(store.path)
    retiled.pixel_digest = "other"
    anew = Counting()
    embed(anew, [slide_bag(retiled)], GRID, CPU, "net")
    assert anew.crops == 96


def test_a_killed_run_loses_no_chunk_that_was_written(store: SlideStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsipipe.store.features.CHUNK_CELLS", 4)

    class Dies(Counting):
        def forward(self, x: Tensor) -> Tensor:
            if self.crops >= 48:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        embed(Dies(), [slide_bag(store)], GRID, CPU, "net")
    again = Counting()
    got = embed(again, [slide_bag(store)], GRID, CPU, "net")
    assert again.crops == 48
    torch.testing.assert_close(got[0], straight(slide_bag(store)), atol=0, rtol=2e-3)


def test_nothing_is_kept_without_a_name(store: SlideStore):
    embed(Counting(), [slide_bag(store)], GRID, CPU)
    assert feature_names(store) == []
