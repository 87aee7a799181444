"""CAMEL: the loss of a bag, the instance set, the painted answer, and a planted texture found again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from textures import Cohort, plant, tiled_pictures, tissue
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.lattice import Lattice
from wsipipe.pseudolabel.method import ScoreMap
from wsipipe.pseudolabel.methods import camel
from wsipipe.pseudolabel.methods.camel import Params, bag_loss, refine
from wsipipe.pseudolabel.parts.classifier import Head
from wsipipe.pseudolabel.parts.mil import Rule, max_max, max_min, prevalence
from wsipipe.runtime import Report
from wsipipe.store import SlideStore

NAN = float("nan")
tenth = partial(prevalence, ratio=0.1)
bags = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20)
Quick = Callable[..., tuple[Report, list[Path]]]


def loss_of(logits: list[float], label: int, rule: Rule) -> float:
    return float(bag_loss(torch.tensor(logits).view(-1, 1), torch.tensor([label]), rule))


def slow_loss(logits: list[list[float]], label: list[int], rule: str) -> float:
    """The mean over classes of -[y ln p + (1 - y) ln(1 - p)], p being picked as the paper writes it."""
    total = 0.0
    for k, y in enumerate(label):
        p = [1 / (1 + math.exp(-row[k])) for row in logits]
        if rule == "prevalence":
            n = len(p)
            kept = sorted(p, reverse=True)[: max(1, math.ceil(n / 10) - 1)] if y else p
        elif y or rule == "max_max":
            kept = [max(p)]
        else:
            kept = [min(p)]
        total += sum(-math.log(q) if y else -math.log(1 - q) for q in kept) / len(kept)
    return total / len(label)


@given(st.integers(1, 3), st.integers(1, 35), st.integers(0, 10_000))
@pytest.mark.parametrize(("rule", "name"), [(max_max, "max_max"), (max_min, "max_min"), (tenth, "prevalence")])
def test_the_loss_of_a_bag_equals_the_formula_written_out(rule: Rule, name: str, classes: int, count: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=g, dtype=torch.float64) * 2
    label = torch.randint(0, 2, (classes,), generator=g)
    got = float(bag_loss(logits, label, rule))
    assert got == pytest.approx(slow_loss(logits.tolist(), label.tolist(), name), rel=1e-6)


@given(bags, st.integers(0, 1))
@pytest.mark.parametrize("rule", [max_max, max_min])
def test_only_the_selected_instance_carries_a_gradient(rule: Rule, scores: list[float], label: int):
    logits = torch.tensor(scores).view(-1, 1).requires_grad_()
    bag_loss(logits, torch.tensor([label]), rule).backward()
    assert torch.nonzero(logits.grad[:, 0]).ravel().tolist() == rule(logits[:, 0].detach(), label).tolist()


@given(bags)
def test_on_negative_bags_max_max_costs_at_least_as_much_as_max_min_and_on_positive_ones_the_same(scores: list[float]):
    assert loss_of(scores, 0, max_max) >= loss_of(scores, 0, max_min)
    assert loss_of(scores, 1, max_max) == loss_of(scores, 1, max_min)


@given(st.floats(-8, 8, width=32), st.integers(1, 20), st.integers(0, 1))
def test_with_constant_scores_the_rules_cost_the_same(score: float, count: int, label: int):
    assert loss_of([score] * count, label, max_max) == loss_of([score] * count, label, max_min)


@given(bags, st.integers(0, 1), st.randoms())
@pytest.mark.parametrize("rule", [max_max, max_min, tenth])
def test_permuting_the_instances_leaves_the_loss_alone(rule: Rule, scores: list[float], label: int, random):
    shuffled = scores.copy()
    random.shuffle(shuffled)
    assert loss_of(shuffled, label, rule) == pytest.approx(loss_of(scores, label, rule), rel=1e-5)


def test_extreme_logits_cost_much_but_stay_finite():
    assert loss_of([200.0, -200.0], 0, max_max) == pytest.approx(200)
    assert loss_of([-200.0], 1, max_max) == pytest.approx(200)
    assert loss_of([200.0, -200.0], 0, max_min) == pytest.approx(0)


def identity_head() -> Head:
    """A head whose logit is the feature itself."""
    head = Head(1, 1)
    with torch.no_grad():
        head.linear.weight.fill_(1)
        head.linear.bias.zero_()
    return head


def collected(bags: list[tuple[list[float], int]], rule: Rule) -> list[tuple[int, int, int, int]]:
    features = [torch.tensor(f).view(-1, 1) for f, _ in bags]
    labels = torch.tensor([[y] for _, y in bags])
    return camel._collect(identity_head(), features, labels, [rule] * len(bags))


def test_a_selected_instance_is_kept_only_where_the_classifier_agrees_with_the_label():
    bags = [([-1.0, 2.0], 1), ([-1.0, -2.0], 1), ([-1.0, 2.0], 0), ([-1.0, -2.0], 0)]
    assert collected(bags, max_max) == [(0, 1, 0, 1), (3, 0, 0, 0)]
    assert collected(bags, max_min) == [(0, 1, 0, 1), (2, 0, 0, 0), (3, 1, 0, 0)]


def test_the_prevalence_rule_keeps_every_agreeing_instance_of_a_negative_bag():
    assert collected([([-1.0, 2.0, -3.0], 0)], tenth) == [(0, 0, 0, 0), (0, 2, 0, 0)]


@given(
    st.lists(st.tuples(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=16), st.integers(0, 1)), min_size=1)
)
def test_the_instance_set_has_at_most_two_of_each_patch_and_all_agree(bags: list[tuple[list[float], int]]):
    chosen = collected(bags, max_max) + collected(bags, max_min)
    per_bag = [sum(b == i for b, *_ in chosen) for i in range(len(bags))]
    assert max(per_bag, default=0) <= 2
    for b, i, _, y in chosen:
        assert y == bags[b][1]
        assert (bags[b][0][i] > 0) == bool(y)


@pytest.fixture(scope="module")
def strip(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 256 x 64 px of tissue."""
    paths = tiled_pictures(tmp_path_factory.mktemp("strip"), {"strip": tissue((256, 64))}, patch_px=64)
    return SlideStore(paths["strip"])


LATTICE = Lattice(16, 16, 1)


def patch_bag(store: SlideStore, column: int, label: tuple[int, ...]) -> Bag:
    xy = np.array([(column * 64 + k % 4 * 16, k // 4 * 16) for k in range(16)], np.int32)
    return Bag(f"p{column}", store, xy, label, True, Window(column * 64, 0, 64, 64))


def instance_set(
    bags: list[Bag], chosen: list[tuple[int, int, int, int]], limit: int = 100
) -> tuple[NDArray[np.uint8], list[list[float]]]:
    crops, targets = camel._instance_set(bags, LATTICE, chosen, limit, 0)
    return crops, targets.tolist()


def test_targets_are_known_where_selected_and_where_the_bag_says_absent(strip: SlideStore):
    bags = [patch_bag(strip, 0, (1, 0, 1)), patch_bag(strip, 1, (0, 0, 0))]
    chosen = [(0, 5, 0, 1), (0, 9, 2, 1), (0, 5, 2, 1), (1, 3, 1, 0)]
    _, targets = instance_set(bags, chosen)
    np.testing.assert_array_equal(targets, [[1, 0, 1], [NAN, 0, 1], [0, 0, 0]])


def test_an_instance_picked_twice_is_in_the_set_once_with_its_own_pixels(strip: SlideStore):
    bags = [patch_bag(strip, 2, (1,))]
    crops, targets = instance_set(bags, [(0, 6, 0, 1), (0, 1, 0, 1), (0, 6, 0, 1)])
    assert targets == [[1], [1]]
    np.testing.assert_array_equal(crops[0].transpose(1, 2, 0), strip.read(Window(128 + 16, 0, 16, 16)))
    np.testing.assert_array_equal(crops[1].transpose(1, 2, 0), strip.read(Window(128 + 32, 16, 16, 16)))


def test_a_full_instance_set_keeps_positives_before_negatives(strip: SlideStore):
    bags = [patch_bag(strip, c, (int(c == 0),)) for c in range(4)]
    chosen = [(0, i, 0, 1) for i in range(6)] + [(c, i, 0, 0) for c in (1, 2, 3) for i in range(16)]
    _, targets = instance_set(bags, chosen, limit=20)
    assert len(targets) == 20
    assert sum(t == [1] for t in targets) == 6


def test_a_full_instance_set_keeps_to_its_limit_even_where_positives_fill_it(strip: SlideStore):
    bags = [patch_bag(strip, c, (int(c < 2),)) for c in range(4)]
    chosen = [(c, i, 0, int(c < 2)) for c in range(4) for i in range(16)]
    crops, targets = instance_set(bags, chosen, limit=20)
    assert len(crops) == len(targets) <= 20
    assert {t[0] for t in targets} == {0, 1}


def test_scores_are_painted_by_the_likeliest_class_with_a_band_of_doubt():
    values = np.array(
        [
            [0.95, 0.05, 0.55, 0.45, 0.61, 0.39, NAN, 0.7, 0.8, NAN],
            [0.05, 0.95, 0.10, 0.30, 0.20, 0.39, NAN, 0.9, 0.8, 0.9],
        ],
        np.float32,
    ).reshape(2, 1, 10)
    mask = refine(ScoreMap(values, 16), Params(uncertain=0.1))
    assert mask.tolist() == [[1, 2, IGNORE, IGNORE, 1, 0, IGNORE, 2, 1, 2]]


def test_without_a_band_only_what_was_not_scored_is_ignored():
    values = np.array([[[0.0, 0.49, 0.5, 0.51, 1.0, NAN]]], np.float32)
    assert refine(ScoreMap(values, 16), Params(uncertain=0.0)).tolist() == [[0, 0, 1, 1, 1, IGNORE]]


def test_the_lattice_splits_the_patch_and_sees_its_context():
    assert camel.lattice(256, Params()) == Lattice(64, 128, 2)
    assert camel.lattice(256, Params(lattice=8, context=1.0, shrink=1)) == Lattice(32, 32, 1)


@pytest.mark.parametrize(
    ("patch_px", "params", "text"),
    [
        (250, Params(), "a patch of 250 px does not split into 4"),
        (2, Params(), "a patch of 2 px does not split into 4"),
        (256, Params(lattice=64), "instances of 4 px"),
        (256, Params(shrink=3), "by the shrink factor"),
    ],
)
def test_a_lattice_that_does_not_divide_is_refused(patch_px: int, params: Params, text: str):
    with pytest.raises(ConfigError, match=text):
        camel.lattice(patch_px, params)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("lattice", [0, -1]),
        ("prevalence", [0.0, -0.1, 1.1, NAN]),
        ("confident", [0.5, 1.0, 0.3]),
        ("uncertain", [-0.1, 0.5]),
        ("views", [0, 9]),
        ("shrink", [0]),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(field: str, values: list[float]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"camel\.{field}: {value}"):
            Params(**{field: value})


def test_slide_and_region_bags_follow_the_prevalence_rule_and_patches_the_max_rules(
    strip: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    seen: list[list[Rule]] = []

    class Stop(Exception):
        pass

    def spy(features: list[Tensor], labels: Tensor, rules: list[Rule], *rest: object, **more: object) -> Head:
        seen.append(rules)
        if len(seen) == 2:
            raise Stop
        return identity_head()

    monkeypatch.setattr(camel, "_train_selector", spy)
    monkeypatch.setattr(camel, "apply_in_batches", lambda model, crops, *rest: torch.zeros(len(crops), 1))
    patch, whole = patch_bag(strip, 0, (1,)), patch_bag(strip, 1, (0,))
    whole = Bag("strip", strip, whole.xy_px, (0,), False, None)
    run = SimpleNamespace(
        encoder=lambda: None, compute=SimpleNamespace(device=None, seed=0, progress=lambda *a: None), self_train=False
    )
    with pytest.raises(Stop):
        camel.fit([patch, whole], LATTICE, Params(prevalence=0.3), run)
    assert [r[0] for r in seen] == [max_max, max_min]
    for _, rule in seen:
        assert rule(torch.arange(20.0), 1).tolist() == [19, 18, 17, 16, 15]
        assert len(rule(torch.arange(20.0), 0)) == 20


def found(cohort: Cohort, name: str = "camel") -> tuple[float, float]:
    """Share of positive patches whose planted cell is painted, and share of other cells painted in error."""
    hits, errors, others = 0, 0, 0
    for slide_id, path in cohort.stores.items():
        store = SlideStore(path)
        side = store.grid.patch_px
        for row, col, window in store.grid.windows():
            grid = store.labels(name).read(window)[:: side // 4, :: side // 4] == 1
            cell = cohort.planted.get((slide_id, row, col))
            if cell is not None:
                hits += int(grid[cell])
                grid[cell] = False
            errors, others = errors + int(grid.sum()), others + grid.size
    return hits / len(cohort.planted), errors / others


def test_a_planted_texture_is_found_in_small_patches(small_cohort: Cohort, quick: Quick):
    report, _ = quick(small_cohort.stores, small_cohort.labels(), name="planted")
    assert report.exit_code == 0
    hits, errors = found(small_cohort, "planted")
    assert hits > 0.85
    assert errors < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_texture_is_found_in_nine_of_ten_patches_from_patch_labels_alone(
    plant_cohort: Callable[..., Cohort], quick: Quick, seed: int, tmp_path: Path
):
    from wsipipe.config import RunConfig

    cohort = plant_cohort("planted", 2, 5, 256)
    run = RunConfig(
        stores=str(cohort.folder / "stores"), runs=str(tmp_path / "runs"), device="cpu", workers=1, seed=seed
    )
    method = {"selector_steps": 150, "retrain_steps": 80, "self_train_steps": 40}
    quick(cohort.stores, cohort.labels(), method, run=run, self_train=True)
    hits, errors = found(cohort)
    assert hits > 0.9
    assert errors < 0.05


def test_slide_labels_and_two_classes_are_learned_by_the_prevalence_rule(
    tile_pictures: Callable[..., dict[str, Path]], quick: Quick, tmp_path: Path
):
    """A slide label says `blobs` or `stripes` of a slide a third of which shows it."""
    pictures = {}
    rows = ["slide_id,label"]
    for i, label in enumerate(["blobs", "stripes", "", "blobs", "stripes", ""]):
        rgb = tissue((384, 192), seed=i)
        for k in range(10 if label else 0):
            plant(rgb, (k % 5 * 48, k // 5 * 48), 48, kind=int(label == "stripes"))
        pictures[f"s{i}"] = rgb
        rows.append(f"s{i},{label}")
    stores = tile_pictures(pictures, patch_px=192)
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows))
    report, _ = quick(stores, labels, {"prevalence": 0.25, "retrain_steps": 60})
    assert report.exit_code == 0
    means = np.zeros((6, 2))
    for i in range(6):
        scores = SlideStore(stores[f"s{i}"]).scores("camel").read(Window(0, 0, 8, 4))
        assert scores.shape == (2, 4, 8)
        planted = np.zeros((4, 8), bool)
        planted[:2, :5] = True
        means[i] = scores[:, planted].mean(1) - scores[:, ~planted].mean(1)
    assert (means[[0, 3], 0] > 30).all()
    assert (means[[1, 4], 1] > 30).all()
    assert (means[[2, 5]] == 0).all(), "a class that the label denies has no score"
