"""Metrics against a per-pixel loop, worked examples, and laws that hold for any counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.evaluations import counted, pixel_pairs

from wsipipe.evaluate.metrics import all_metrics, per_class, pooled, scores_of
from wsipipe.evaluate.metrics.overlap import dice_of, inverse_log_weighted_iou_of, iou_of, recall_of


def slow_scores(pairs: list[tuple[int, int]], c: int) -> dict[str, float]:
    """Scores of class c, one pixel at a time."""
    hit = false = missed = 0
    for truth, said in pairs:
        if truth == 255:
            continue
        answer = 0 if said == 255 else said
        if truth == c and answer == c:
            hit += 1
        elif answer == c:
            false += 1
        elif truth == c:
            missed += 1

    def share(over: int, under: int) -> float:
        return over / under if under else math.nan

    return {
        "iou": share(hit, hit + false + missed),
        "dice": share(2 * hit, 2 * hit + false + missed),
        "precision": share(hit, hit + false),
        "recall": share(hit, hit + missed),
    }


@given(pixel_pairs)
def test_scores_agree_with_a_loop_over_pixels(pairs: list[tuple[int, int]]) -> None:
    scores = scores_of(counted(pairs).matrix)
    slow = [slow_scores(pairs, c) for c in range(3)]
    for score in ("iou", "dice", "precision", "recall"):
        np.testing.assert_allclose(scores[score], [s[score] for s in slow], rtol=1e-12)
    for score, first in (("miou", 0), ("miou_named", 1)):
        defined = [s["iou"] for s in slow[first:] if not math.isnan(s["iou"])]
        np.testing.assert_allclose(scores[score], sum(defined) / len(defined) if defined else math.nan)
    scored = [(t, 0 if a == 255 else a) for t, a in pairs if t != 255]
    if scored:
        weighted = sum(slow[t]["iou"] for t, _ in scored) / len(scored)
        np.testing.assert_allclose(scores["frequency_weighted_iou"], weighted)
        np.testing.assert_allclose(scores["accuracy"], sum(t == a for t, a in scored) / len(scored))
    else:
        assert math.isnan(scores["frequency_weighted_iou"])
        assert math.isnan(scores["accuracy"])


@given(pixel_pairs)
def test_dice_is_a_function_of_iou(pairs: list[tuple[int, int]]) -> None:
    matrix = counted(pairs).matrix
    np.testing.assert_allclose(dice_of(matrix), 2 * iou_of(matrix) / (1 + iou_of(matrix)))


@given(st.lists(pixel_pairs, min_size=1, max_size=4))
def test_stacked_matrices_score_as_each_alone(sets: list[list[tuple[int, int]]]) -> None:
    each = [counted(pairs).matrix for pairs in sets]
    for name, values in scores_of(np.stack(each)).items():
        np.testing.assert_array_equal(values, [scores_of(matrix)[name] for matrix in each])


def test_a_metric_has_a_value_per_class_or_one_over_all() -> None:
    matrices = np.ones((5, 4, 4), np.int64)
    for metric in all_metrics():
        assert metric.of(matrices).shape == ((5,) if metric.pooled else (5, 4))
    assert {m.name for m in (*per_class(), *pooled())} == {m.name for m in all_metrics()}


def test_a_pixel_that_is_not_predicted_is_missed() -> None:
    assert recall_of(counted([(1, 255), (0, 255), (1, 1), (255, 255)]).matrix)[1] == 0.5


def test_binary_table_of_the_papers() -> None:
    # F1 0.926 is IoU 0.862 (CAMEL): 926 hits, 74 false, 74 missed
    matrix = np.array([[0, 74], [74, 926]])
    assert dice_of(matrix)[1] == pytest.approx(0.926)
    assert iou_of(matrix)[1] == pytest.approx(0.862, abs=5e-4)


def test_perfect_answer() -> None:
    for values in scores_of(counted([(0, 0), (1, 1), (2, 2), (2, 2), (0, 0), (1, 1)]).matrix).values():
        assert (values == 1).all()


def inverse_log_weights(truth_px: Sequence[int]) -> NDArray[np.float64]:
    """The weight of every class of a truth: the score where only its pixels are right and all others go to one more
    class, which the truth has nothing of."""
    nowhere = len(truth_px)
    scores = []
    for right in range(nowhere):
        counts = np.zeros((nowhere + 1, nowhere + 1), np.int64)
        for k, n in enumerate(truth_px):
            counts[k, k if k == right else nowhere] = n
        scores.append(float(inverse_log_weighted_iou_of(counts)))
    return np.array(scores)


@pytest.mark.parametrize(
    ("truth_px", "weights"),
    [
        ((10**6, 10**5, 10**4), (0.270, 0.324, 0.405)),
        ((10**6, 10**3, 10**2), (1 / 6, 1 / 3, 1 / 2)),  # logarithms of 6, 3 and 2
        ((2, 16, 4), (4 / 7, 1 / 7, 2 / 7)),
        ((10**4, 10**2, 10**4), (1 / 4, 1 / 2, 1 / 4)),
        ((0, 10**5, 1, 10**5), (0, 0.5, 0, 0.5)),  # ln 1 = 0 and no ln 0: no weight, and no division by zero
        ((7, 7), (0.5, 0.5)),
        ((500,), (1,)),
    ],
)
def test_weights_of_classes_are_the_inverse_logarithms_of_their_pixels(
    truth_px: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    assert inverse_log_weights(truth_px) == pytest.approx(weights, abs=5e-4)


@given(st.lists(st.integers(2, 10**9), min_size=1, max_size=6))
def test_inverse_log_weights_sum_to_one_and_fall_with_the_frequency(truth_px: list[int]) -> None:
    weights = inverse_log_weights(truth_px)
    assert weights.sum() == pytest.approx(1)
    for (n, weight), (m, other) in itertools.product(zip(truth_px, weights, strict=True), repeat=2):
        assert (weight > other) == (n < m)


def test_without_two_pixels_of_a_class_there_is_no_inverse_log_weighted_score() -> None:
    lone = np.zeros((3, 3), np.int64)
    lone[1, 1] = 1
    assert math.isnan(inverse_log_weighted_iou_of(lone))
