"""The benchmark of encoders: shares as the truth has them, and an AUC that tells good features from blind ones."""

from __future__ import annotations

from argparse import Namespace

import encoders
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsipipe.config import RunConfig, TileConfig
from wsipipe.labels import WeakLabel
from wsipipe.pseudolabel.bags import Bag
from wsipipe.slides import SlideFile
from wsipipe.store import SlideStore
from wsipipe.tiling.tile import tile_slides

SIDE = 512
ROWS = [WeakLabel(i + 2, f"s{i}", (i % 2,), split="train" if i < 4 else "test") for i in range(6)]


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Bag]:
    """Slides of tissue, every second with a redder upper left quarter; truth/<slide>.png has 2 there, else 1."""
    folder = tmp_path_factory.mktemp("encoders")
    (folder / "truth").mkdir()
    for row in ROWS:
        rgb = np.random.default_rng(row.line).integers(120, 200, (SIDE, SIDE, 3), np.uint8)
        truth = np.ones((SIDE, SIDE), np.uint8)
        if row.present[0]:
            rgb[:256, :256, 1:] //= 2
            truth[:256, :256] = 2
        Image.fromarray(rgb).save(folder / f"{row.slide_id}.png")
        Image.fromarray(truth).save(folder / "truth" / f"{row.slide_id}.png")
    slides = {r.slide_id: SlideFile(folder / f"{r.slide_id}.png") for r in ROWS}
    how = TileConfig(patch_px=128, mpp_override=0.5, codec="zstd", qc=False)
    _, stores = tile_slides(slides, how, RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=1))
    at = np.array([(x, y) for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)], np.int32)
    return [Bag(r.slide_id, SlideStore(path), at, r.present, False, None) for r, path in zip(ROWS, stores, strict=True)]


@pytest.fixture
def args(bags: list[Bag]) -> Namespace:
    truth = bags[0].store.path.parents[1] / "truth" / "{slide_id}.png"
    return Namespace(truth=str(truth), value=2, encoder="net", method="vicreg", steps=7, batch=3)


class Colours(nn.Module):
    """Mean and spread of the channels, or (blind) numbers that say nothing."""

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, x: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(len(x))
        features = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
        return torch.randn(features.shape, generator=g) if self.blind else features


def test_shares_are_those_of_the_truth(bags: list[Bag], args: Namespace):
    assert not encoders.class_share(bags[0], args).any()
    expected = [float(x < 256 and y < 256) for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)]
    assert encoders.class_share(bags[1], args).tolist() == expected


def test_good_features_rank_the_instances_and_blind_ones_do_not(bags: list[Bag], args: Namespace):
    split = {r.slide_id: r.split for r in ROWS}
    truth = {b.id: encoders.class_share(b, args) for b in bags if split[b.id] == "test"}
    assert encoders.instance_auc(Colours(blind=False), bags, split, truth, 0) > 0.95
    assert 0.2 < encoders.instance_auc(Colours(blind=True), bags, split, truth, 0) < 0.8


def test_the_page_says_by_how_much_the_mean_error_is_cut(args: Namespace):
    lines = encoders.page(args, ROWS, {"from scratch": [0.5, 0.3], "pretrained": [0.2, 0.3]})
    assert lines[0] == "net, vicreg, 7 steps of 3; 4 training slides, 2 test slides"
    assert lines[4:] == ["| 0 | 0.500 | 0.200 |", "| 1 | 0.300 | 0.300 |", "| mean | 0.400 | 0.250, cut by 38% |"]
