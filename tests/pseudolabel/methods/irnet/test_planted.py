"""IRNet: boundaries of planted textures are learned, and short walks improve the class maps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.textures import textured_tile, tiled_pictures

from wsipipe.geometry import Window
from wsipipe.labels import Classes
from wsipipe.nn.encoders import create_encoder
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import ScoreContext
from wsipipe.pseudolabel.methods import irnet
from wsipipe.pseudolabel.methods.irnet import Params
from wsipipe.pseudolabel.methods.irnet.network import IrNet
from wsipipe.pseudolabel.methods.irnet.window_seeds import mean_maxima
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

CPU = torch.device("cpu")

TILES = 8
"""Textured tiles of 512 px; every other pair holds the class."""


@pytest.fixture(scope="module")
def textured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SlideStore], list[np.ndarray]]:
    """Stores of the tiles in patches of 256 px, and their truth at the centre of every cell of 8 px: [64, 64] each."""
    tiles = {f"t{i:02}": textured_tile(i, i // 2 % 2 == 1) for i in range(TILES)}
    paths = tiled_pictures(tmp_path_factory.mktemp("tiles"), {k: t.rgb for k, t in tiles.items()}, patch_px=256)
    return [SlideStore(paths[k]) for k in tiles], [t.truth[4::8, 4::8] for t in tiles.values()]


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_encoder("resnet18_quarter").eval()


def patch_bags(stores: list[SlideStore], truths: list[np.ndarray], instance_grid: InstanceGrid) -> list[Bag]:
    """Every patch without the class, and with more than a twentieth of it, as a bag with that label."""
    bags = []
    for store, truth in zip(stores, truths, strict=True):
        xy = instance_grid.cells(store, 0.5)[:, ::-1] * instance_grid.instance_px
        for x, y in itertools.product((0, 256), repeat=2):
            share = (truth[y // 8 : y // 8 + 32, x // 8 : x // 8 + 32] == 2).mean()
            own = xy[(xy // 256 == [x // 256, y // 256]).all(1)]
            if len(own) and (share == 0 or share > 0.05):
                own = np.ascontiguousarray(own)
                bags.append(
                    Bag(f"{store.slide_id}@{x},{y}", store, own, (int(share > 0),), True, Window(x, y, 256, 256))
                )
    return bags


def mean_iou(masks: list[np.ndarray], truths: list[np.ndarray]) -> float:
    """Over the class and other tissue, glass left out."""
    painted, wanted = (np.concatenate([m[t > 0] for m, t in zip(v, truths, strict=True)]) for v in (masks, truths))
    of_class, found = wanted == 2, painted == 1
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in ((of_class, found), (~of_class, ~found))]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_planted_textures_the_loss_falls_and_short_walks_improve_the_class_maps(
    textured: tuple[list[SlideStore], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
):
    stores, truths = textured
    short = {"steps": 80, "batch": 12, "lr": 2e-3, "boundary_steps": 150, "boundary_batch": 8}
    params = Params(map_size=32, **short)
    instance_grid = irnet.instance_grid(256, params)
    bags, losses = patch_bags(stores, truths, instance_grid), []
    learn = irnet.train_boundary
    monkeypatch.setattr(irnet, "train_boundary", lambda *a: losses.extend(learn(*a)))
    run = SimpleNamespace(classes=Classes(("a",)), encoder=encoder, compute=ComputeContext(CPU, 0))
    model = irnet.fit(bags, instance_grid, params, run)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    drawn = irnet.draw_windows(bags, instance_grid, 1, 1000, 0)

    def judged(params: Params) -> float:
        model.top.copy_(mean_maxima(model, drawn, params))
        scores = [irnet.score(model, ScoreContext(s, instance_grid, CPU), params) for s in stores]
        return mean_iou([irnet.mask(s, params) for s in scores], truths)

    walked = {t: judged(replace(params, exp_times=t)) for t in (1, 2, 3)}
    monkeypatch.setattr(IrNet, "walked", lambda self, maps, x, tissue, how: maps * tissue.unsqueeze(1))
    unwalked = judged(params)
    assert min(walked.values()) > unwalked + 0.01, (walked, unwalked)
