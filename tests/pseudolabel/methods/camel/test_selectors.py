"""Selectors: each learns from what its own rule picks, and its picks are kept where it agrees with the label."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.methods.camel.rules import SelectionRule, max_max, max_min, prevalence
from wsipipe.pseudolabel.methods.camel.selectors import (
    Pick,
    collect_picks,
    drop_vetoed,
    score_features,
    train_selector,
)
from wsipipe.runtime.device import ComputeContext

tenth = partial(prevalence, ratio=0.1)
COMPUTE = ComputeContext(torch.device("cpu"))


def collected(bags: list[tuple[list[float], int]], rule: SelectionRule) -> list[Pick]:
    scores = [torch.tensor(f).view(-1, 1) for f, _ in bags]
    return collect_picks(scores, torch.tensor([[y] for _, y in bags]), [rule] * len(bags))


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


def test_no_pick_is_made_of_a_class_that_is_not_known():
    scores = [torch.tensor([[1.0, 1.0], [2.0, -1.0]])]
    assert collect_picks(scores, torch.tensor([[float("nan"), 1.0]]), [max_max]) == [Pick(0, 0, 1, 1)]


def slow_collect(scores: list[list[list[float]]], labels: list[list[int]], rule: str) -> list[Pick]:
    picks = []
    for b, rows in enumerate(scores):
        for k, y in enumerate(labels[b]):
            column = [r[k] for r in rows]
            best = max(column) if y or rule == "max_max" else min(column)
            if (best > 0) == bool(y):
                picks.append(Pick(b, column.index(best), k, y))
    return picks


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 10_000))
@pytest.mark.parametrize(("rule", "name"), [(max_max, "max_max"), (max_min, "max_min")])
def test_collecting_follows_the_rule_of_training_class_by_class(
    rule: SelectionRule, name: str, bags: int, classes: int, count: int, seed: int
):
    g = torch.Generator().manual_seed(seed)
    scores = [torch.randn(count, classes, generator=g) for _ in range(bags)]
    labels = torch.randint(0, 2, (bags, classes), generator=g)
    wanted = slow_collect([z.tolist() for z in scores], labels.tolist(), name)
    assert collect_picks(scores, labels, [rule] * bags) == wanted


def planted_features(seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Twenty bags of 16 instances; in each positive one instance has a high first feature."""
    g = torch.Generator().manual_seed(seed)
    features = [torch.randn(16, 6, generator=g) for _ in range(20)]
    labels = torch.tensor([[b % 2] for b in range(20)])
    for b in range(1, 20, 2):
        features[b][b % 16, 0] += 8
    return features, labels


@pytest.mark.parametrize("rule", [max_max, tenth])
def test_a_selector_finds_the_instance_that_makes_a_bag_positive(rule: SelectionRule):
    features, labels = planted_features()
    head = train_selector(features, labels, [rule] * 20, Schedule(80, 3e-2), COMPUTE)
    scores = score_features(head, features)
    found = [int(scores[b][:, 0].argmax()) == b % 16 for b in range(1, 20, 2)]
    assert sum(found) >= 9


def test_the_two_selectors_are_two_networks():
    """Max-Max pushes down the hardest instance of a negative bag, Max-Min the easiest: it is the bolder of the two."""
    features, labels = planted_features()
    heads = [train_selector(features, labels, [rule] * 20, Schedule(80, 3e-2), COMPUTE) for rule in (max_max, max_min)]
    negatives = [torch.cat(score_features(h, features)[::2]).max() for h in heads]
    assert negatives[0] < 0 < negatives[1]


def test_a_selector_depends_on_its_seed_alone():
    features, labels = planted_features()

    def trained(seed: int) -> Tensor:
        torch.manual_seed(seed + 7)
        compute = ComputeContext(torch.device("cpu"), seed)
        return train_selector(features, labels, [tenth] * 20, Schedule(5, 1e-2), compute).linear.weight

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_a_positive_that_another_selector_takes_for_negative_is_dropped():
    picks = [Pick(0, 0, 0, 1), Pick(0, 1, 0, 1), Pick(1, 0, 0, 0), Pick(0, 1, 1, 1)]
    scores = [torch.tensor([[0.5, 1.0], [-0.5, 2.0]]), torch.tensor([[3.0, 0.0]])]
    assert drop_vetoed(picks, scores) == [picks[0], picks[2], picks[3]]


def test_max_min_alone_may_pick_any_instance_of_a_positive_bag_and_the_veto_puts_it_right():
    features, labels = planted_features()
    scores = []
    for rule in (max_max, max_min):
        scores.append(
            score_features(train_selector(features, labels, [rule] * 20, Schedule(80, 3e-2), COMPUTE), features)
        )
    picks = [p for p in collect_picks(scores[1], labels, [max_min] * 20) if p.target]
    wrong = [p for p in picks if p.instance != p.bag % 16]
    assert wrong
    assert not [p for p in drop_vetoed(picks, scores[0]) if p in wrong]
