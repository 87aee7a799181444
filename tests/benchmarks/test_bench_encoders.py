"""The benchmark of encoders: shares as the truth has them, and an AUC that tells good features from blind ones."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.quality import encoders
from wsipipe.config.options import RunConfig, TileConfig
from wsipipe.labels import WeakLabel
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.features import embed
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.device import ComputeContext
from wsipipe.slides import SlideFile
from wsipipe.store import SlideStore
from wsipipe.tiling.stage import run as tile_slides

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
    _, stores = tile_slides(
        slides, how, RunContext(RunConfig(stores=str(folder / "stores"), runs=str(folder / "runs"), workers=1))
    )
    at = np.array([(x, y) for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)], np.int32)
    own = [SlideStore(path) for path in stores]
    return [Bag(r.slide_id, s, at, r.present, False, s.grid.frame) for r, s in zip(ROWS, own, strict=True)]


@pytest.fixture
def args(bags: list[Bag]) -> Namespace:
    truth = bags[0].store.path.parents[1] / "truth" / "{slide_id}.png"
    return Namespace(truth=str(truth), value=2, encoder="net", method="vicreg", steps=7, batch=3, stain_jitter=0.4)


class Colours(nn.Module):
    """Mean and spread of the channels, or (blind) numbers that say nothing."""

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, x: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(len(x))
        features = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
        return torch.randn(features.shape, generator=g) if self.blind else features


def test_shares_are_those_of_the_truth(bags: list[Bag], args: Namespace) -> None:
    assert not encoders.class_share(bags[0], args).any()
    expected = [float(x < 256 and y < 256) for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)]
    assert encoders.class_share(bags[1], args).tolist() == expected


@pytest.mark.parametrize("head", encoders.HEADS)
def test_good_features_rank_the_instances_and_blind_ones_do_not(bags: list[Bag], args: Namespace, head: str) -> None:
    split = {r.slide_id: r.split for r in ROWS}
    truth = [encoders.class_share(b, args) for b in bags]
    aucs = []
    for blind in (False, True):
        features = embed(Colours(blind), bags, encoders.GRID, ComputeContext(torch.device("cpu"), 0))
        aucs.append(encoders.instance_auc(head, features, bags, split, truth, 0))
    assert aucs[0] > 0.95
    assert 0.2 < aucs[1] < 0.8


def test_a_head_is_fitted_on_what_it_is_named_after(bags: list[Bag], args: Namespace) -> None:
    """Features that are the truth of other instances than the labels speak of: only the head by truth can use them."""
    split = {r.slide_id: r.split for r in ROWS}
    truth = [encoders.class_share(b, args) for b in bags]
    denied = [1 - t if split[b.id] == "train" else t for b, t in zip(bags, truth, strict=True)]
    features = embed(Colours(False), bags, encoders.GRID, ComputeContext(torch.device("cpu"), 0))
    assert encoders.instance_auc("truth", features, bags, split, denied, 0) < 0.05
    assert encoders.instance_auc("slide labels", features, bags, split, denied, 0) > 0.95


def test_the_page_says_by_how_much_the_mean_error_is_cut(args: Namespace) -> None:
    columns = [(head, name) for head in encoders.HEADS for name in encoders.ENCODERS]
    errors = dict(zip(columns, ([0.5, 0.3], [0.2, 0.3], [0.1, 0.1], [0.05, 0.1]), strict=True))
    lines = encoders.page(args, ROWS, errors)
    assert lines[0] == (
        "net, vicreg, 7 steps of 3, stain jitter 0.4; 1 - AUC of the instances of 2 test slides, 4 training slides"
    )
    assert lines[2].count("|") == 6
    assert lines[4:] == [
        "| 0 | 0.500 | 0.200 | 0.100 | 0.050 |",
        "| 1 | 0.300 | 0.300 | 0.100 | 0.100 |",
        "| mean | 0.400 | 0.250, cut by 38% | 0.100 | 0.075, cut by 25% |",
    ]
