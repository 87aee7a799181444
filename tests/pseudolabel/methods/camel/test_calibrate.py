"""The threshold of a class from weak labels: a mixture whose parts are known, and folds that hold every class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.pseudolabel.methods.camel.calibrate import (
    best_threshold,
    expected_dice,
    matching_shifts,
    mixture_share,
    threshold_shifts,
    two_folds,
)


def mixture(share: float, gap: float = 3.0, seed: int = 0, count: int = 4000) -> tuple[Any, Any, Any]:
    """Scores of negative and of positive bags, and which of the latter are of the class."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < share
    return rng.normal(-2, 1, count), rng.normal(-2, 1, count) + gap * truth, truth


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_the_share_of_a_class_is_told_from_the_mixture(share: float):
    negative, positive, truth = mixture(share, gap=5)
    assert mixture_share(negative, positive, 0.01) == pytest.approx(truth.mean(), abs=0.06)


def test_where_scores_tell_nothing_the_share_is_the_least_that_was_assumed():
    negative, positive, _ = mixture(0.0)
    assert mixture_share(negative, positive, 0.1) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_expected_dice_is_close_to_that_which_the_truth_gives(share: float):
    negative, positive, truth = mixture(share)
    for t in (-1.0, -0.5, 0.0, 1.0):
        hits = (positive[truth] >= t).sum()
        dice = 2 * hits / ((positive >= t).sum() + (negative >= t).sum() + truth.sum())
        (got,) = expected_dice(negative, positive, float(truth.mean()), np.array([t]))
        assert got == pytest.approx(dice, abs=0.02)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_threshold_is_almost_as_good_as_the_best_chosen_with_the_truth(share: float):
    negative, positive, truth = mixture(share)

    def dice(t: float) -> float:
        return float(2 * (positive[truth] >= t).sum() / ((positive >= t).sum() + (negative >= t).sum() + truth.sum()))

    best = max(dice(t) for t in np.linspace(-4, 4, 161))
    found = best_threshold(torch.from_numpy(negative), torch.from_numpy(positive), 0.05)
    assert dice(found) > best - 0.02
    assert best - dice(4.0) > 0.1, "the threshold matters"


@given(st.floats(-5, 5), st.floats(0.2, 5))
def test_the_threshold_moves_with_the_scores(shift: float, scale: float):
    negative, positive, _ = (torch.from_numpy(v) for v in mixture(0.4, count=400))
    moved = best_threshold(negative * scale + shift, positive * scale + shift, 0.1)
    assert moved == pytest.approx(best_threshold(negative, positive, 0.1) * scale + shift, abs=1e-6)


def test_shifts_put_the_threshold_of_each_class_at_zero():
    negative, positive, _ = (torch.from_numpy(v).float() for v in mixture(0.4))
    logits = [torch.stack([negative, positive + 1], 1), torch.stack([positive, negative + 1], 1)]
    labels = torch.tensor([[0, 1], [1, 0]])
    shift = threshold_shifts(logits, labels, 0.1)
    assert float(shift[0] - shift[1]) == pytest.approx(1, abs=1e-4)
    assert threshold_shifts([z + shift for z in logits], labels, 0.1).abs().max() < 1e-4


@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_the_same_share_of_positive_bags_is_taken_as_the_teacher_takes(seed: int, share: float):
    rng = np.random.default_rng(seed)
    own = [torch.from_numpy(rng.normal(0, 1, (50, 1))).float() for _ in range(3)]
    teacher = [torch.from_numpy(rng.random((50, 1)) - 1 + share).float() for _ in range(3)]
    labels = torch.tensor([[1], [0], [1]])
    shift = matching_shifts(own, teacher, labels)
    taken, wanted = (
        sum(int((z + s > 0).sum()) for z, y in zip(v, labels, strict=True) if y)
        for v, s in ((own, shift), (teacher, 0))
    )
    assert abs(taken - wanted) <= 1


def of_slides(*slide_ids: str) -> list[Any]:
    return [SimpleNamespace(store=SimpleNamespace(slide_id=s), patient="") for s in slide_ids]


def test_halves_part_the_bags_and_keep_those_of_a_slide_together():
    bags = of_slides(*(f"s{i // 3}" for i in range(24)))
    labels = torch.tensor([[int(i // 3 % 2), int(i % 3 == 0)] for i in range(24)])
    a, b = two_folds(bags, labels, 0)
    assert sorted(a + b) == list(range(24))
    assert not {bags[i].store.slide_id for i in a} & {bags[i].store.slide_id for i in b}
    for part in (a, b):
        assert len(part) == 12
        assert all(set(labels[part, k].tolist()) == {0, 1} for k in range(2))


def test_the_slides_of_one_patient_stay_together():
    bags = of_slides(*(f"s{i}" for i in range(24)))
    for i, bag in enumerate(bags):
        bag.patient = "" if i == 0 else f"p{i // 4}"
    labels = torch.tensor([[i // 4 % 2] for i in range(24)])
    a, b = two_folds(bags, labels, 0)
    assert sorted(a + b) == list(range(24))
    assert not {bags[i].patient for i in a} & {bags[i].patient for i in b}


def test_the_bags_of_one_slide_are_parted_one_by_one():
    a, b = two_folds(of_slides(*["s"] * 6), torch.tensor([[i % 2] for i in range(6)]), 0)
    assert sorted(a + b) == list(range(6))
    assert min(len(a), len(b)) >= 2


def test_a_class_that_one_bag_alone_holds_cannot_be_halved():
    assert two_folds(of_slides("a", "b", "c", "d"), torch.tensor([[1], [0], [0], [0]]), 0) == []


def test_halves_depend_on_the_seed_alone():
    bags, labels = of_slides(*(f"s{i}" for i in range(20))), torch.tensor([[i % 2] for i in range(20)])
    assert two_folds(bags, labels, 1) == two_folds(bags, labels, 1)
    assert two_folds(bags, labels, 1) != two_folds(bags, labels, 2)
