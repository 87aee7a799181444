"""Selection rules of multiple-instance learning: worked examples, ties, and what a permutation may not change."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.pseudolabel.parts.mil import Rule, max_max, max_min, prevalence, trusted

tenth = partial(prevalence, ratio=0.1)
bags = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30)
labels = st.integers(0, 1)
RULES = [max_max, max_min, tenth]
NAMES = ["max_max", "max_min", "prevalence"]


def chosen(rule: Rule, scores: list[float], label: int) -> list[int]:
    return rule(torch.tensor(scores), label).tolist()


@pytest.mark.parametrize(
    ("rule", "label", "index"), [(max_max, 1, 1), (max_min, 1, 1), (max_max, 0, 1), (max_min, 0, 3)]
)
def test_the_two_rules_differ_only_on_negative_bags(rule: Rule, label: int, index: int):
    assert chosen(rule, [0.1, 0.9, 0.4, 0.05], label) == [index]


@pytest.mark.parametrize("rule", [max_max, max_min])
@pytest.mark.parametrize("label", [0, 1])
def test_ties_go_to_the_first_index(rule: Rule, label: int):
    assert chosen(rule, [0.5] * 7, label) == [0]
    assert chosen(rule, [0.3, 0.7, 0.7, 0.3], 1) == [1]
    assert chosen(max_min, [0.7, 0.3, 0.3], 0) == [1]


def test_ties_of_the_prevalence_rule_go_to_the_first_indices_in_order():
    assert chosen(partial(prevalence, ratio=0.5), [1.0] * 8, 1) == [0, 1, 2]
    assert chosen(partial(prevalence, ratio=0.5), [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], 1) == [1, 3, 4]


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30, unique=True), labels, st.randoms())
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_permuting_the_instances_permutes_what_is_selected(rule: Rule, scores: list[float], label: int, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    before = chosen(rule, scores, label)
    after = chosen(rule, [scores[i] for i in order], label)
    assert sorted(order[i] for i in after) == sorted(before)


@given(bags, labels, st.randoms())
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_permuting_the_instances_leaves_the_selected_scores_even_with_ties(
    rule: Rule, scores: list[float], label: int, random
):
    shuffled = scores.copy()
    random.shuffle(shuffled)
    a = sorted(scores[i] for i in chosen(rule, scores, label))
    assert a == sorted(shuffled[i] for i in chosen(rule, shuffled, label))


@given(bags, labels)
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_rule_never_picks_an_instance_twice_nor_none(rule: Rule, scores: list[float], label: int):
    picked = chosen(rule, scores, label)
    assert picked
    assert len(set(picked)) == len(picked)
    assert set(picked) <= set(range(len(scores)))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("score", [-4.0, 0.0, 4.0])
def test_a_bag_of_one_instance_yields_that_instance_whatever_its_score(rule: Rule, label: int, score: float):
    assert chosen(rule, [score], label) == [0]


@pytest.mark.parametrize(
    ("count", "ratio", "trust"),
    [
        (5000, 0.1, 499),
        (16, 0.1, 1),
        (10, 0.1, 1),
        (30, 0.1, 2),
        (31, 0.1, 3),
        (16, 1.0, 15),
        (1, 1.0, 1),
        (16, 1e-9, 1),
    ],
)
def test_the_number_of_trusted_instances(count: int, ratio: float, trust: int):
    assert trusted(count, ratio) == trust


@given(st.integers(1, 10_000), st.integers(1, 1000))
def test_the_number_of_trusted_instances_is_the_formula_in_whole_numbers(count: int, thousandths: int):
    assert trusted(count, thousandths / 1000) == max(1, math.ceil(-(-count * thousandths // 1000)) - 1)


@given(bags, st.floats(0.01, 1))
def test_of_a_positive_bag_the_highest_scores_are_trusted(scores: list[float], ratio: float):
    picked = chosen(partial(prevalence, ratio=ratio), scores, 1)
    assert len(picked) == trusted(len(scores), ratio)
    assert [scores[i] for i in picked] == sorted(scores, reverse=True)[: len(picked)]


@given(bags, st.floats(0.01, 1))
def test_of_a_negative_bag_every_instance_is_taken(scores: list[float], ratio: float):
    assert chosen(partial(prevalence, ratio=ratio), scores, 0) == list(range(len(scores)))


@given(bags)
def test_a_vanishing_prevalence_equals_max_max_on_positive_bags(scores: list[float]):
    assert chosen(partial(prevalence, ratio=1e-6), scores, 1) == chosen(max_max, scores, 1)
