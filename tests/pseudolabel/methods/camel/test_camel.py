"""CAMEL: its steps in order, and the painted answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.textures import Cohort, noise, tiled_pictures, tissue
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE, Classes, read_labels
from wsipipe.nn.encoders import create_encoder, normalise
from wsipipe.pseudolabel.bags import Bag, make_bags
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.method import FitContext, ScoreContext, ScoreMap
from wsipipe.pseudolabel.methods import camel
from wsipipe.pseudolabel.methods.camel import Params, steps
from wsipipe.pseudolabel.methods.camel.network import Head, InstanceClassifier
from wsipipe.pseudolabel.methods.camel.rules import SelectionRule, max_max, max_min
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

NAN = float("nan")


def test_scores_are_painted_by_the_likeliest_class_with_a_band_of_doubt():
    values = np.array(
        [
            [0.95, 0.05, 0.55, 0.45, 0.61, 0.39, NAN, 0.7, 0.8, NAN],
            [0.05, 0.95, 0.10, 0.30, 0.20, 0.39, NAN, 0.9, 0.8, 0.9],
        ],
        np.float32,
    ).reshape(2, 1, 10)
    mask = camel.mask(ScoreMap.of_probabilities(values, 16), Params(uncertain=0.1))
    assert mask.tolist() == [[1, 2, IGNORE, IGNORE, 1, 0, IGNORE, 2, 1, 2]]


def test_without_a_band_only_what_was_not_scored_is_ignored():
    values = np.array([[[0.0, 0.49, 0.5, 0.51, 1.0, NAN]]], np.float32)
    scores = ScoreMap.of_probabilities(values, 16)
    assert camel.mask(scores, Params(uncertain=0.0)).tolist() == [[0, 0, 0, 1, 1, IGNORE]]


class Red(nn.Module):
    """As an encoder: how red a crop is, times a gain."""

    gain: Tensor

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x[:, :1].mean((2, 3))


def red_model() -> InstanceClassifier:
    model = InstanceClassifier(Red(), 1, 1)
    with torch.no_grad():
        model.head.linear.weight.fill_(1.5)
        model.head.linear.bias.fill_(-0.2)
    return model


@pytest.mark.parametrize(("overlap", "context"), [(1, 1.0), (2, 1.0), (2, 2.0), (4, 1.0)])
def test_the_score_of_a_place_is_the_mean_over_the_instances_that_cover_it(
    tile_pictures: Callable[..., dict[str, Path]], overlap: int, context: float
):
    rgb = np.full((140, 170, 3), 243, np.uint8)
    rgb[20:130, 14:150] = noise((136, 110), 9.0, 3)
    store = SlideStore(tile_pictures({"s": rgb}, patch_px=64, min_tissue=0.1)["s"])
    params, model = Params(context=context, overlap=overlap, views=1), red_model()
    instance_grid = InstanceGrid(16, round(16 * context), 1)
    got = camel.score(model, ScoreContext(store, instance_grid, torch.device("cpu")), params)
    step = 16 // overlap
    assert got.stride_px == step
    assert got.values.shape == (1, -(-140 // step), -(-170 // step))
    at = instance_grid.overlapping(store, params.min_tissue, overlap)
    found: dict[tuple[int, int], list[float]] = {}
    for r, c in at.tolist():
        crop = read_crops(store, np.array([[c * step, r * step]], np.int32), instance_grid, store.grid.frame)
        with torch.inference_mode():
            p = float(model(normalise(torch.from_numpy(crop))).sigmoid())
        for place in np.ndindex(overlap, overlap):
            found.setdefault((r + place[0], c + place[1]), []).append(p)
    for place in np.ndindex(got.values.shape[1:]):
        mean = np.mean(found[place]) if place in found else NAN
        np.testing.assert_allclose(got.values[0][place], mean, atol=1e-2)  # the batch may be in half precision
    assert len(found) > 50


def test_the_shift_of_a_fit_moves_its_scores_and_belongs_to_its_weights():
    model = red_model()
    x = torch.rand(4, 3, 8, 8)
    before = model(x)
    model.shift.fill_(2.0)
    torch.testing.assert_close(model(x), before + 2)
    other = InstanceClassifier(Red(), 1, 1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), before + 2)


def test_the_lattice_splits_the_patch_and_sees_its_context():
    assert camel.instance_grid(256, Params()) == InstanceGrid(64, 128, 2)
    assert camel.instance_grid(256, Params(lattice=8, context=1.0, shrink=1)) == InstanceGrid(32, 32, 1)


@pytest.mark.parametrize(
    ("patch_px", "params", "text"),
    [
        (250, Params(), "camel.lattice: 4 does not divide a patch of 250 px"),
        (2, Params(), "camel.lattice: 4 does not divide a patch of 2 px"),
        (256, Params(lattice=64), "instances of 4 px"),
        (256, Params(overlap=3), "camel.overlap: 3 does not divide instances of 64 px into steps of 2 px"),
        (
            256,
            Params(lattice=16, overlap=16),
            "camel.overlap: 16 does not divide instances of 16 px into steps of 2 px",
        ),
    ],
)
def test_a_lattice_that_does_not_divide_is_refused(patch_px: int, params: Params, text: str):
    with pytest.raises(ConfigError, match=text):
        camel.instance_grid(patch_px, params)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("lattice", [0, -1]),
        ("prevalence", [0.0, -0.1, 1.1, NAN]),
        ("confident", [0.5, 1.0, 0.3]),
        ("uncertain", [-0.1, 0.5]),
        ("views", [0, 9]),
        ("overlap", [0]),
        ("cascade", [-1, 1, 3, 4, 8]),
        ("constraint", [-0.5, NAN]),
        ("selectors", ["'trees'"]),
        ("stain_jitter", [-0.1, 1.1]),
        ("max_zoom", [0.9, 2.5]),
        ("shrink", [0]),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(field: str, values: list[Any]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"camel\.{field}: {value}"):
            Params(**{field: value.strip("'") if isinstance(value, str) else value})


class Seen(Exception):
    """What a test wanted to see has been seen."""


def stub_run(self_train: bool = False) -> FitContext:
    compute = ComputeContext(torch.device("cpu"), 0)
    return FitContext(
        Classes(("a",)),
        Red,
        self_train,
        compute,
        lambda bags, instance_grid: [torch.zeros(len(b.xy_px), 2) for b in bags],
    )


@pytest.fixture(scope="module")
def strip(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 256 x 64 px of tissue."""
    return SlideStore(
        tiled_pictures(tmp_path_factory.mktemp("strip"), {"strip": tissue((256, 64))}, patch_px=64)["strip"]
    )


def strip_bag(store: SlideStore, column: int, label: int, patch: bool = True) -> Bag:
    xy = np.array([(column * 64 + k % 4 * 16, k // 4 * 16) for k in range(16)], np.int32)
    return Bag(f"p{column}", store, xy, (label,), patch, Window(column * 64, 0, 64, 64) if patch else store.grid.frame)


def test_slide_and_region_bags_follow_the_prevalence_rule_and_patches_the_max_rules(
    strip: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    seen: list[list[SelectionRule]] = []

    def spy(features: list[Tensor], labels: Tensor, rules: list[SelectionRule], *rest: object) -> Head:
        seen.append(rules)
        if len(seen) == 2:
            raise Seen
        return Head(2, 1)

    monkeypatch.setattr(steps, "train_selector", spy)
    bags = [strip_bag(strip, 0, 1), strip_bag(strip, 1, 0, patch=False)]
    with pytest.raises(Seen):
        camel.fit(bags, InstanceGrid(16, 16, 1), Params(prevalence=0.3, calibrate=False, warm_steps=0), stub_run())
    assert [r[0] for r in seen] == [max_max, max_min]
    for _, rule in seen:
        assert rule(torch.arange(20.0), 1).tolist() == [19, 18, 17, 16, 15]
        assert len(rule(torch.arange(20.0), 0)) == 20


def test_each_half_is_scored_by_what_learned_from_the_other_alone(strip: SlideStore, monkeypatch: pytest.MonkeyPatch):
    learned: list[list[int]] = []
    bags = [strip_bag(strip, c, c % 2) for c in range(4)]

    def spy(self: object, of: list[int]) -> InstanceClassifier:
        learned.append(of)
        model = red_model()
        model.shift.fill_(float(len(learned)))
        return model

    monkeypatch.setattr(steps.CamelSteps, "learn", spy)
    problem = steps.CamelSteps(bags, InstanceGrid(16, 16, 1), Params(), stub_run())
    last, held_out, mean = problem.cross_fit([[0, 3], [1, 2]])
    assert learned == [[1, 2], [0, 3]]
    assert float(last.shift) == 2
    model = red_model()
    for b, logits in enumerate(held_out):
        model.shift.fill_(1.0 if b in (0, 3) else 2.0)
        torch.testing.assert_close(logits, problem.predict(model, [b])[0])
        model.shift.fill_(1.5)
        torch.testing.assert_close(mean[b], problem.predict(model, [b])[0])
    problem.cross_fit([[0, 1, 2, 3]])
    assert learned[2:] == [[0, 1, 2, 3]], "a single fold is scored by what learned from it"


def test_the_encoder_learns_bags_before_selectors_see_its_features_and_retraining_starts_from_it(
    strip: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    bags = [strip_bag(strip, c, c % 2) for c in range(4)]
    trained: list[tuple[str, Tensor, Tensor]] = []
    seen: list[list[Tensor]] = []

    def learn(
        model: InstanceClassifier, crops: object, targets: Tensor, plan: object, how: object, task: str, *rest: object
    ) -> None:
        assert isinstance(model.encoder, Red)
        trained.append((task, targets, model.encoder.gain.clone()))
        model.encoder.gain.add_(1)

    def select(features: list[Tensor], *rest: object) -> Head:
        seen.append(features)
        return Head(1, 1)

    monkeypatch.setattr(steps, "train_classifier", learn)
    monkeypatch.setattr(steps, "train_selector", select)
    params = Params(warm_steps=5, views=1)
    steps.CamelSteps(bags, InstanceGrid(16, 16, 1), params, replace(stub_run(), encoder=Red)).learn([1, 2])
    (first, targets, start), (second, _, end) = trained
    assert (first, second) == ("warm up", "retrain")
    assert targets.tolist() == [[1.0]] * len(bags[1].xy_px) + [[0.0]] * len(bags[2].xy_px)
    assert end == start + 1, "retraining starts from the encoder that learned the bags"
    instance_grid = InstanceGrid(16, 16, 1)
    for features, bag in zip(seen[0], (bags[1], bags[2]), strict=True):
        crops = read_crops(bag.store, bag.xy_px, instance_grid, bag.bounds)
        torch.testing.assert_close(features, Red(float(end))(normalise(torch.from_numpy(crops))))


@pytest.mark.parametrize(
    "method",
    [
        {"constraint": 1.0, "max_zoom": 1.2},
        {"cascade": 2},
        {"selectors": "networks"},
        {"veto": False},
        {"calibrate": True},
        {"warm_steps": 2},
    ],
    ids=str,
)
def test_every_option_gives_another_fit_than_the_plain_one(strip: SlideStore, method: dict[str, Any]):
    bags = [strip_bag(strip, c, c % 2) for c in range(4)]
    g = torch.Generator().manual_seed(0)
    features = {id(b): torch.randn(16, 8, generator=g) for b in bags}
    compute = ComputeContext(torch.device("cpu"), 0)

    def encoder() -> nn.Module:
        return create_encoder("resnet18_quarter")

    def embed(of: list[Bag], instance_grid: InstanceGrid) -> list[Tensor]:
        return [features[id(b)] if id(b) in features else torch.zeros(len(b.xy_px), 8) for b in of]

    run = FitContext(Classes(("a",)), encoder, False, compute, embed)
    short = {"context": 1.0, "shrink": 1, "overlap": 1, "selector_steps": 8, "selector_lr": 0.1, "retrain_steps": 2}
    fits = []
    for more in ({}, method):
        torch.manual_seed(0)
        params = Params(**{"calibrate": False, "batch": 8, "views": 1, "warm_steps": 0} | short | more)
        fits.append(camel.fit(bags, InstanceGrid(16, 16, 1), params, run).state_dict())
    assert not all(torch.equal(v, fits[1][k]) for k, v in fits[0].items())


def test_the_cascade_adds_instances_of_the_crops_that_it_labelled(small_cohort: Cohort):
    stores = {k: SlideStore(p) for k, p in small_cohort.stores.items()}
    params = Params(cascade=2, context=1.0, shrink=1, overlap=1, selector_steps=60, selector_lr=1e-2)
    instance_grid = camel.instance_grid(192, params)
    table = read_labels(small_cohort.labels())
    bags, _ = make_bags(table, table.rows, stores, instance_grid, 0.5)

    def embed(bags: list[Bag], instance_grid: InstanceGrid) -> list[Tensor]:
        """How rough and how bright each crop is."""
        out = []
        for b in bags:
            x = read_crops(b.store, b.xy_px, instance_grid, b.bounds).astype(np.float32)
            blurred = x.reshape(*x.shape[:2], x.shape[2] // 4, 4, x.shape[3] // 4, 4).mean((3, 5))
            out.append(torch.from_numpy(np.stack([blurred.std((1, 2, 3)), x.mean((1, 2, 3))], 1)))
        return out

    run = FitContext(table.classes, Red, False, ComputeContext(torch.device("cpu"), 0), embed)
    problem = steps.CamelSteps(bags, instance_grid, params, run)
    of = list(range(len(bags)))
    a, b = (
        route(of, None, lambda: problem._features(of, None))
        for route in (problem._pick_instances, problem._pick_by_cascade)
    )
    assert b
    assert len(a) <= 2 * len(bags)
    assert len(b) <= 8 * len(bags), "two crops a patch and two instances a crop, by two selectors each"
    planted = {(s, r, c): cell for (s, r, c), cell in small_cohort.planted.items()}
    for pick in a + b:
        assert pick.target == bags[pick.bag].label[0]
    hits = 0
    positives = [p for p in b if p.target]
    for pick in positives:
        bag = bags[pick.bag]
        x, y = bag.xy_px[pick.instance].tolist()
        cell = planted[(bag.store.slide_id, y // 192, x // 192)]
        hits += cell == (y % 192 // 48, x % 192 // 48)
    assert hits / len(positives) > 0.9
