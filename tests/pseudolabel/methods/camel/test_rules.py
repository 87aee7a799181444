"""Rules of multiple-instance learning, and the loss of a bag: worked examples, ties, what a permutation changes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.pseudolabel.methods.camel.rules import SelectionRule, bag_loss, max_max, max_min, prevalence, select
from wsipipe.pseudolabel.shared.sampling import prevalence_k

tenth = partial(prevalence, ratio=0.1)
bags = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30)
labels = st.integers(0, 1)
RULES = [max_max, max_min, tenth]
NAMES = ["max_max", "max_min", "prevalence"]


def chosen(rule: SelectionRule, scores: list[float], label: int) -> list[int]:
    return rule(torch.tensor(scores), label).tolist()


@pytest.mark.parametrize(
    ("rule", "label", "index"), [(max_max, 1, 1), (max_min, 1, 1), (max_max, 0, 1), (max_min, 0, 3)]
)
def test_the_two_rules_differ_only_on_negative_bags(rule: SelectionRule, label: int, index: int):
    assert chosen(rule, [0.1, 0.9, 0.4, 0.05], label) == [index]


@pytest.mark.parametrize("rule", [max_max, max_min])
@pytest.mark.parametrize("label", [0, 1])
def test_ties_go_to_the_first_index(rule: SelectionRule, label: int):
    assert chosen(rule, [0.5] * 7, label) == [0]
    assert chosen(rule, [0.3, 0.7, 0.7, 0.3], 1) == [1]
    assert chosen(max_min, [0.7, 0.3, 0.3], 0) == [1]


def test_ties_of_the_prevalence_rule_go_to_the_first_indices_in_order():
    assert chosen(partial(prevalence, ratio=0.5), [1.0] * 8, 1) == [0, 1, 2]
    assert chosen(partial(prevalence, ratio=0.5), [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], 1) == [1, 3, 4]


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30, unique=True), labels, st.randoms())
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_permuting_the_instances_permutes_what_is_selected(
    rule: SelectionRule, scores: list[float], label: int, random
):
    order = list(range(len(scores)))
    random.shuffle(order)
    before = chosen(rule, scores, label)
    after = chosen(rule, [scores[i] for i in order], label)
    assert sorted(order[i] for i in after) == sorted(before)


@given(bags, labels, st.randoms())
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_permuting_the_instances_leaves_the_selected_scores_even_with_ties(
    rule: SelectionRule, scores: list[float], label: int, random
):
    shuffled = scores.copy()
    random.shuffle(shuffled)
    a = sorted(scores[i] for i in chosen(rule, scores, label))
    assert a == sorted(shuffled[i] for i in chosen(rule, shuffled, label))


@given(bags, labels)
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_rule_never_picks_an_instance_twice_nor_none(rule: SelectionRule, scores: list[float], label: int):
    picked = chosen(rule, scores, label)
    assert picked
    assert len(set(picked)) == len(picked)
    assert set(picked) <= set(range(len(scores)))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("score", [-4.0, 0.0, 4.0])
def test_a_bag_of_one_instance_yields_that_instance_whatever_its_score(rule: SelectionRule, label: int, score: float):
    assert chosen(rule, [score], label) == [0]


@given(bags, st.floats(0.01, 1))
def test_of_a_positive_bag_the_highest_scores_are_selected(scores: list[float], ratio: float):
    picked = chosen(partial(prevalence, ratio=ratio), scores, 1)
    assert len(picked) == prevalence_k(len(scores), ratio)
    assert [scores[i] for i in picked] == sorted(scores, reverse=True)[: len(picked)]


@given(bags, st.floats(0.01, 1))
def test_of_a_negative_bag_every_instance_is_selected(scores: list[float], ratio: float):
    assert chosen(partial(prevalence, ratio=ratio), scores, 0) == list(range(len(scores)))


@given(bags)
def test_a_vanishing_prevalence_equals_max_max_on_positive_bags(scores: list[float]):
    assert chosen(partial(prevalence, ratio=1e-6), scores, 1) == chosen(max_max, scores, 1)


def loss_of(logits: list[float], label: int, rule: SelectionRule) -> float:
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
def test_the_loss_of_a_bag_equals_the_formula_written_out(
    rule: SelectionRule, name: str, classes: int, count: int, seed: int
):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=g, dtype=torch.float64) * 2
    label = torch.randint(0, 2, (classes,), generator=g)
    got = float(bag_loss(logits, label, rule))
    assert got == pytest.approx(slow_loss(logits.tolist(), label.tolist(), name), rel=1e-6)


@given(bags, st.integers(0, 1))
@pytest.mark.parametrize("rule", [max_max, max_min])
def test_only_the_selected_instance_carries_a_gradient(rule: SelectionRule, scores: list[float], label: int):
    logits = torch.tensor(scores).view(-1, 1).requires_grad_()
    bag_loss(logits, torch.tensor([label]), rule).backward()
    assert torch.nonzero(logits.grad[:, 0]).ravel().tolist() == rule(logits[:, 0].detach(), label).tolist()


@given(bags)
def test_on_negative_bags_max_max_costs_at_least_as_much_as_max_min_and_on_positive_ones_the_same(scores: list[float]):
    assert loss_of(scores, 0, max_max) >= loss_of(scores, 0, max_min) * (1 - 1e-6)  # float32 is not monotonic
    assert loss_of(scores, 1, max_max) == loss_of(scores, 1, max_min)


@given(st.floats(-8, 8, width=32), st.integers(1, 20), st.integers(0, 1))
def test_with_constant_scores_the_rules_cost_the_same(score: float, count: int, label: int):
    assert loss_of([score] * count, label, max_max) == loss_of([score] * count, label, max_min)


@given(bags, st.integers(0, 1), st.randoms())
@pytest.mark.parametrize("rule", [max_max, max_min, tenth])
def test_permuting_the_instances_leaves_the_loss_alone(rule: SelectionRule, scores: list[float], label: int, random):
    shuffled = scores.copy()
    random.shuffle(shuffled)
    assert loss_of(shuffled, label, rule) == pytest.approx(loss_of(scores, label, rule), rel=1e-5)


def test_extreme_logits_cost_much_but_stay_finite():
    assert loss_of([200.0, -200.0], 0, max_max) == pytest.approx(200)
    assert loss_of([-200.0], 1, max_max) == pytest.approx(200)
    assert loss_of([200.0, -200.0], 0, max_min) == pytest.approx(0)


def test_a_class_that_is_not_known_is_left_out_of_the_loss():
    logits = torch.tensor([[1.0, -3.0], [0.5, 2.0]])
    partly = bag_loss(logits, torch.tensor([1.0, float("nan")]), max_max)
    assert float(partly) == loss_of([1.0, 0.5], 1, max_max)
    assert [(k, y, i.tolist()) for k, y, i in select(logits, torch.tensor([float("nan"), 0.0]), max_min)] == [
        (1, 0, [0])
    ]


def test_glass_left_out_of_a_bag_can_be_picked_by_no_rule():
    """The tissue gate takes instances out of the bag: with one left, that one is picked whatever the scores say."""
    scores, valid = torch.tensor([9.0, -0.3, -9.0, 4.0]), [1]
    for rule in RULES:
        for label in (0, 1):
            assert [valid[i] for i in rule(scores[valid], label).tolist()] == [1]
