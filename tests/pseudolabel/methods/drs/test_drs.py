"""DRS: its maps against the formulas written out, what learns from what, and textures."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.examples import examples
from support.textures import Cohort, plant, tiled_pictures, tissue
from torch import nn

from wsipipe.config.options import RunConfig
from wsipipe.geometry import Window
from wsipipe.labels import Classes
from wsipipe.nn.encoders import create_encoder, normalise
from wsipipe.nn.train import seeded_init
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, shrunk
from wsipipe.pseudolabel.method import ScoreContext
from wsipipe.pseudolabel.methods import drs
from wsipipe.pseudolabel.methods.drs import Params
from wsipipe.pseudolabel.methods.drs.localisation import Drs, Pooled, scaled
from wsipipe.pseudolabel.methods.drs.window_maps import absence_level
from wsipipe.pseudolabel.shared.windows import Windows, draw_windows, train_windows
from wsipipe.pseudolabel.stage import PseudolabelOptions
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

NAN = float("nan")
CPU = torch.device("cpu")
PUBLISHED: dict[str, Any] = {
    "fusion": "max",
    "weigh": False,
    "absence": False,
    "suppress_from": 1,
    "refiner_from": "encoder",
}
"""As published, but for `network` and `prevalence`."""

GRID = InstanceGrid(8, 64, 2)


class ColourMaps(nn.Module):
    """Maps that are weighted sums of the mean colours of 8 x 8 px: two classes."""

    weight = torch.tensor([[1.0, -1.0, 0.2], [0.0, -1.0, 1.0]])

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("kc,bcyx->bkyx", self.weight, F.avg_pool2d(x, 8)) + self.bias


def drs_of_colours(bias: float = 0.0, refiner: nn.Module | None = None, absent: float = 0.7, **values: Any) -> Drs:
    model = Drs((ColourMaps(bias), refiner), 2, 4, Params(**values))
    model.absent.fill_(absent)
    return model.eval()


def pictures(count: int = 3, side: int = 32) -> torch.Tensor:
    """Windows of noise and of colours that change every 8 px, so that both classes are present and absent somewhere."""
    rng = np.random.default_rng(1)
    colours = rng.integers(60, 200, (count, 3, side // 8, side // 8), dtype=np.uint8)
    return torch.from_numpy(colours.repeat(8, 2).repeat(8, 3) + rng.integers(0, 50, (count, 3, side, side), np.uint8))


def slow_maps(model: Drs, rgb: torch.Tensor, glass: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """P_0 and M_c of each window, cell by cell; glass: bool [B, 4, 4]."""
    p = model.params
    out = np.zeros((len(rgb), 3, 4, 4))
    for b in range(len(rgb)):
        maps, excluded, means = [], [], []
        for size in p.scales:
            side = round(32 * size / 8) * 8
            x = rgb[b : b + 1].float() / 255
            if side != 32:
                x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
            f = model.classifier(normalise(x))
            means.append(f.mean((2, 3))[0].numpy())
            f = F.interpolate(f, size=(4, 4), mode="bilinear")[0].numpy()
            maps.append([[[max(0, v) for v in row] for row in m] for m in f])
            maps[-1] = [np.array(m) / (np.max(m) + 1e-5) for m in maps[-1]]
            excluded.append([[min(max(0, -f[c, i, j]) for c in range(2)) for j in range(4)] for i in range(4)])
        fuse = np.max if p.fusion == "max" else np.mean
        w = [1 / (1 + math.exp(-z)) if p.weigh else 1.0 for z in np.mean(means, axis=0)]
        w = [0.0 if labels is not None and labels[b, c] == 0 else w[c] for c in range(2)]
        for i, j in np.ndindex(4, 4):
            absence = min(1, fuse([d[i][j] for d in excluded]) / float(model.absent))
            none = (1 - max(w)) + max(w) * absence if p.absence else 0.0
            out[b, 0, i, j] = 1.0 if glass[b, i, j] else none
        for c in range(2):
            m = fuse([m[c] for m in maps], axis=0)
            out[b, 1 + c] = np.where(glass[b], 0, w[c] * m / (m.max() + 1e-5))
    return out


@pytest.mark.parametrize("labels", [None, [[1, 0], [0, 0], [1, NAN]]])
@pytest.mark.parametrize("values", [{}, PUBLISHED, {"scales": (1.0,), "fusion": "max"}, {"weigh": False}])
@torch.inference_mode()
def test_localisation_maps_equal_the_formulas_written_out(labels: list[list[float]] | None, values: dict[str, Any]):
    model = drs_of_colours(-0.4, **values)
    rgb = pictures()
    known = torch.ones(3, 32, 32, dtype=torch.bool)
    known[0, :8] = False
    known[0, 3, 9] = True  # one pixel of tissue makes a cell of tissue
    glass = np.zeros((3, 4, 4), bool)
    glass[0, 0] = [True, False, True, True]
    own = None if labels is None else torch.tensor(labels)
    got = model.localisation_maps(rgb, known, own)
    np.testing.assert_allclose(got, slow_maps(model, rgb, glass, np.array(labels) if labels else None), atol=1e-5)


@examples(40)
@given(arrays(np.float32, (2, 3, 3, 3), elements=st.floats(-4, 4, width=32)))
def test_every_map_lies_in_0_to_1_and_has_a_maximum_of_about_1_or_is_nothing(values: np.ndarray):
    maps = scaled(torch.from_numpy(values).relu())
    assert maps.min() >= 0
    assert maps.max() <= 1
    highest = values.max((2, 3))
    assert (maps.amax((2, 3)).numpy()[highest > 0.01] > 0.998).all()
    assert (maps.amax((2, 3)).numpy()[highest <= 0] == 0).all()


@torch.inference_mode()
def test_maps_are_zero_for_absent_classes_and_near_1_for_present_ones():
    model = drs_of_colours(**PUBLISHED)
    maps = model.localisation_maps(pictures(), torch.ones(3, 32, 32), torch.tensor([[1, 1], [1, 0], [0, 0]]))[:, 1:]
    highest = maps.amax((2, 3))
    np.testing.assert_allclose(highest, [[1, 1], [1, 0], [0, 0]], atol=1e-3)


@torch.inference_mode()
def test_where_the_label_excludes_every_class_the_background_is_certain():
    maps = drs_of_colours().localisation_maps(pictures(), torch.ones(3, 32, 32), torch.zeros(3, 2))
    assert (maps[:, 0] == 1).all()
    assert not maps[:, 1:].any()


@torch.inference_mode()
def test_refined_maps_are_fused_and_clipped_with_glass_taken_out():
    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] in (24, 32, 40)
            level = torch.tensor([-1.0, 0.5, 3.0]) * x.shape[-1] / 32
            return level.view(1, 3, 1, 1).expand(len(x), 3, x.shape[2] // 8, x.shape[3] // 8)

    known = torch.ones(2, 32, 32)
    known[1, 8:16, 8:16] = 0
    for fusion, half in (("mean", 0.5), ("max", 0.625)):
        model = drs_of_colours(refiner=Bright(), fusion=fusion)
        maps = model.maps(pictures(2), known)
        assert maps.shape == (2, 3, 4, 4)
        assert maps[0, :, 1, 1].tolist() == [0, half, 1]
        assert maps[1, :, 1, 1].tolist() == [1, 0, 0]
        assert maps[1, :, 1, 2].tolist() == [0, half, 1]


@torch.inference_mode()
def test_without_absence_only_glass_is_the_background_of_refined_maps():
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 2, 4, 4), 0.3)

    maps = drs_of_colours(refiner=Two(), **PUBLISHED).maps(pictures(1), torch.ones(1, 32, 32))
    assert maps[0, :, 2, 2].tolist() == pytest.approx([0, 0.3, 0.3])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 160 x 96 px of tissue of changing colour, in patches of 64 px."""
    rgb = tissue((160, 96))
    rgb[:, 60:100, 0] //= 2
    rgb[20:40, :, 2] //= 2
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64)["slide"])


def patch(store: SlideStore, x: int, label: tuple[int, ...]) -> Bag:
    xy = np.array([(x + k % 8 * 8, k // 8 * 8) for k in range(64)], np.int32)
    return Bag(f"p{x}", store, xy, label, True, Window(x, 0, 64, 64))


def some_windows(store: SlideStore, *labels: tuple[int, int]) -> Windows:
    return draw_windows([patch(store, 16 * i, y) for i, y in enumerate(labels)], GRID, 1, 100, 0)


@torch.inference_mode()
def test_the_level_of_absence_is_the_mean_over_the_tissue_of_windows_without_any_class(slide: SlideStore):
    model = drs_of_colours(-1.0)
    windows = some_windows(slide, (1, 0), (0, 0), (0, 1), (0, 0))
    windows.tissue[1, :16] = False
    rgb = torch.from_numpy(windows.rgb)
    values = []
    for b in (1, 3):
        maps = [F.interpolate(model(x)[b : b + 1], size=(4, 4), mode="bilinear")[0] for x in model._sizes(rgb)]
        excluded = torch.stack([torch.minimum((-m[0]).relu(), (-m[1]).relu()) for m in maps]).mean(0)
        values += excluded[2 if b == 1 else 0 :].ravel().tolist()
    assert len(values) == 8 + 16
    assert min(values) < max(values)
    assert float(absence_level(model, windows)) == pytest.approx(np.mean(values), rel=1e-4)


@torch.inference_mode()
def test_without_a_bag_of_no_class_absence_is_never_seen(slide: SlideStore):
    model = drs_of_colours(-1.0, weigh=False)
    model.absent.copy_(absence_level(model, some_windows(slide, (1, 0), (0, 1))))
    assert model.absent == torch.inf
    assert not model.localisation_maps(pictures(), torch.ones(3, 32, 32))[:, 0].any()


@pytest.mark.parametrize(("start", "same"), [("classifier", True), ("encoder", False)])
def test_the_refinement_network_starts_where_it_is_asked_to(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch, start: str, same: bool
):
    model, _ = fitted(slide, monkeypatch, refiner_from=start)
    assert torch.equal(model.refiner[1][0].weight, model.classifier[1][0].weight) == same


def fitted(slide: SlideStore, monkeypatch: pytest.MonkeyPatch, **values: Any) -> tuple[Drs, dict[str, Any]]:
    """A fit whose networks are given but not trained, and what they were given."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        drs, "train_windows", lambda m, w, params, c: seen.update(classifier=m, windows=w, params=params)
    )

    def learn(network: object, rgb: object, maps: object, how: object, compute: object, has_background: bool) -> None:
        seen.update(refiner=network, maps=maps, learn=how, has_background=has_background)

    monkeypatch.setattr(drs, "train_refiner", learn)
    run = SimpleNamespace(
        classes=Classes(("a", "b")), encoder=lambda: create_encoder("resnet18_quarter"), compute=ComputeContext(CPU, 3)
    )
    bags = [patch(slide, 64, (1, 0)), patch(slide, 0, (0, 0)), patch(slide, 96, (1, 1))]
    model = drs.fit(bags, GRID, Params(map_size=8, steps=7, refiner_steps=9, **values), run)
    assert isinstance(model, Drs)
    return model, seen


def test_the_classifier_learns_windows_and_the_refinement_network_its_maps_held_to_their_labels(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    model, seen = fitted(slide, monkeypatch, lr=0.125, prevalence=0.3)
    assert seen["classifier"].network is model.classifier
    params = seen["params"]
    assert (params.steps, params.lr, params.batch, params.prevalence) == (7, 0.125, 32, 0.3)
    assert seen["windows"].labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert seen["refiner"] is model.refiner
    assert seen["learn"].steps == 9
    assert seen["has_background"] is True
    assert seen["maps"].shape == (3, 3, 8, 8)
    assert (seen["maps"][1, 0] == 255).all(), "a window without any class is background everywhere"
    assert not seen["maps"][1, 1:].any()
    assert not seen["maps"][0, 2].any()
    assert seen["maps"][0, 1].any()
    assert 0 < float(model.absent) < torch.inf


def test_as_published_the_refinement_network_has_the_maps_of_the_classes_alone(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    model, seen = fitted(slide, monkeypatch, **PUBLISHED)
    assert seen["maps"].shape == (3, 2, 8, 8)
    assert seen["has_background"] is False
    assert seen["maps"].max((2, 3)).tolist() == [[pytest.approx(255, abs=1), 0], [0, 0], [255, 255]]
    assert model.absent == torch.inf


def test_the_refinement_network_may_be_left_out(slide: SlideStore, monkeypatch: pytest.MonkeyPatch):
    model, seen = fitted(slide, monkeypatch, refiner=False)
    assert model.refiner is None
    assert "maps" not in seen


def test_scores_of_a_slide_are_the_weighted_means_of_the_maps_of_its_windows(slide: SlideStore):
    model = Drs((ColourMaps(-0.4), None), 2, 8, Params(map_size=8, scales=(1.0,)))
    model.absent.fill_(0.7)
    scores = drs.score(model, ScoreContext(slide, GRID, CPU), Params(map_size=8))
    assert scores.stride_px == 8
    assert scores.values.shape == (2, 12, 20)
    total, number = np.zeros((3, 12, 20)), np.zeros((12, 20))
    fading = np.outer([1, 2, 3, 4, 4, 3, 2, 1], [1, 2, 3, 4, 4, 3, 2, 1])
    for top in (0, 4):
        for left in (0, 4, 8, 12):
            rgb = shrunk(slide.read(Window(left * 8, top * 8, 64, 64)), 2).transpose(2, 0, 1)[None]
            maps = model.maps(torch.from_numpy(rgb.copy()), torch.ones(1, 32, 32))[0].numpy()
            total[:, top : top + 8, left : left + 8] += maps * fading
            number[top : top + 8, left : left + 8] += fading
    np.testing.assert_allclose(np.concatenate([scores.background[None], scores.values]), total / number, atol=1e-5)


def textured(number: int, first: int) -> tuple[Windows, np.ndarray]:
    """Windows of 64 px of noise, every other one with a square of blobs; and which of their cells these cover."""
    rng = np.random.default_rng(first)
    pictures, cover = [], np.zeros((number, 8, 8), bool)
    for i in range(number):
        rgb = tissue((64, 64), first + i)
        if i % 2 == 0:
            row, col = rng.integers(0, 5, 2).tolist()
            plant(rgb, (8 * col, 8 * row), 32)
            cover[i, row : row + 4, col : col + 4] = True
        pictures.append(rgb.transpose(2, 0, 1))
    labels = torch.tensor([[float(i % 2 == 0)] for i in range(number)])
    whole = np.ones(number, bool)
    return Windows(np.stack(pictures), np.ones((number, 64, 64), bool), labels, np.arange(number), whole), cover


@pytest.mark.slow
def test_maps_cover_more_of_the_texture_the_smaller_the_share():
    train, _ = textured(96, 0)
    test, truth = textured(32, 1000)
    coverage = []
    for delta in (1.0, 0.5):
        params = Params(delta=delta, suppress_from=1, refiner=False)
        made = partial(drs.build, Classes(("a",)), create_encoder("resnet18_quarter"), InstanceGrid(8, 64, 1), params)
        model = seeded_init(made, 0)
        assert isinstance(model, Drs)
        train_windows(
            Pooled(model.classifier),
            train,
            replace(params, steps=150, lr=2e-3, batch=16, prevalence=0.0),
            ComputeContext(CPU, 0),
        )
        maps = model.maps(torch.from_numpy(test.rgb), torch.from_numpy(test.tissue)).numpy()[:, 1]
        coverage.append(maps[truth].mean())
    assert coverage[1] > coverage[0]


@pytest.mark.slow
def test_the_class_is_painted_where_its_texture_was_planted(small_cohort: Cohort, run: RunConfig):
    from wsipipe.config.options import PseudolabelConfig
    from wsipipe.pseudolabel.stage import run as pseudolabel

    options = PseudolabelConfig(
        labels=str(small_cohort.labels()), method="drs", encoder="resnet18_quarter", pretrain=False
    )
    values = {"shrink": 1, "steps": 80, "batch": 16, "lr": 2e-3, "refiner_steps": 60, "scales": [1.0]}
    report, stores = pseudolabel(
        list(small_cohort.stores.values()), PseudolabelOptions(options, {"drs": values}), RunContext(run)
    )
    assert report.exit_code == 0
    planted, others = [], []
    for path in stores:
        store = SlideStore(path)
        for row, col, w in store.grid.windows():
            painted = (store.labels("drs").read(w) == 1).reshape(4, 48, 4, 48).mean((1, 3))
            cell = small_cohort.planted.get((store.slide_id, row, col))
            if cell is None:
                assert not painted.any(), "a class that the label excludes is not painted"
            else:
                planted.append(painted[cell])
                others.append(np.delete(painted.ravel(), cell[0] * 4 + cell[1]).mean())
    assert np.mean(planted) > 0.5
    assert np.mean(planted) > 3 * np.mean(others)
