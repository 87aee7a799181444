"""Confusion against a per-pixel loop, worked examples, and laws that hold for any masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsipipe.evaluate import metrics
from wsipipe.evaluate.metrics import Confusion, accuracy_of, count_pairs, dice_of, iou_of, mean_of

NAMES = ("a", "b")
Mask = NDArray[np.uint8]

pixel_pairs = st.lists(st.tuples(st.sampled_from([0, 1, 2, 255]), st.sampled_from([0, 1, 2, 255])), max_size=40)


def counted(pairs: list[tuple[int, int]]) -> Confusion:
    confusion = Confusion.empty(NAMES)
    array = np.array(pairs, np.uint8).reshape(-1, 2)
    confusion.add(array[:, 0].copy(), array[:, 1].copy())
    return confusion


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
    confusion = counted(pairs)
    slow = [slow_scores(pairs, c) for c in range(3)]
    for score in ("iou", "dice", "precision", "recall"):
        np.testing.assert_allclose(getattr(confusion, score), [s[score] for s in slow], rtol=1e-12)
    scored = [(t, 0 if a == 255 else a) for t, a in pairs if t != 255]
    assert confusion.pixels == len(scored)
    assert confusion.unpredicted == sum(t != 255 and a == 255 for t, a in pairs)
    defined = [s["iou"] for s in slow if not math.isnan(s["iou"])]
    np.testing.assert_allclose(confusion.miou, sum(defined) / len(defined) if defined else math.nan)
    named = [s["iou"] for s in slow[1:] if not math.isnan(s["iou"])]
    np.testing.assert_allclose(confusion.miou_named, sum(named) / len(named) if named else math.nan)
    if scored:
        weighted = sum(slow[t]["iou"] for t, _ in scored) / len(scored)
        np.testing.assert_allclose(confusion.frequency_weighted_iou, weighted)
        np.testing.assert_allclose(confusion.accuracy, sum(t == a for t, a in scored) / len(scored))
    else:
        assert math.isnan(confusion.frequency_weighted_iou)
        assert math.isnan(confusion.accuracy)


@given(pixel_pairs, st.randoms(use_true_random=False))
def test_order_of_pixels_changes_nothing(pairs: list[tuple[int, int]], random: object) -> None:
    mixed = list(pairs)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(counted(pairs).counts, counted(mixed).counts)


@given(pixel_pairs)
def test_dice_is_a_function_of_iou(pairs: list[tuple[int, int]]) -> None:
    confusion = counted(pairs)
    np.testing.assert_allclose(confusion.dice, 2 * confusion.iou / (1 + confusion.iou))


@given(pixel_pairs, st.integers(0, 40), st.integers(0, 40))
def test_any_split_into_blocks_gives_the_same_matrix(pairs: list[tuple[int, int]], i: int, j: int) -> None:
    i, j = sorted((i, j))
    blocks = [pairs[:i], pairs[i:j], pairs[j:]]
    together = Confusion.empty(NAMES)
    for block in blocks:
        together = together.plus(counted(block))
    np.testing.assert_array_equal(together.counts, counted(pairs).counts)


def test_strips_of_a_large_mask_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth, answer = rng.choice([0, 1, 2, 255], (2, 31, 17)).astype(np.uint8)
    whole, strips = Confusion.empty(NAMES), Confusion.empty(NAMES)
    whole.add(truth, answer)
    monkeypatch.setattr(metrics, "_STRIP", 100)
    strips.add(truth, answer)
    np.testing.assert_array_equal(whole.counts, strips.counts)


def test_not_predicted_is_class_0_and_counted_apart() -> None:
    confusion = counted([(1, 255), (0, 255), (1, 1), (255, 255)])
    assert confusion.unpredicted == 2
    assert confusion.matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert confusion.recall[1] == 0.5


def test_binary_table_of_the_papers() -> None:
    # F1 0.926 is IoU 0.862 (CAMEL): 926 hits, 74 false, 74 missed
    confusion = Confusion.of(("a",), np.array([[0, 74], [74, 926]]))
    assert confusion.dice[1] == pytest.approx(0.926)
    assert confusion.iou[1] == pytest.approx(0.862, abs=5e-4)
    assert confusion.names == ("a",)


def inverse_log_weights(truth_px: Sequence[int]) -> NDArray[np.float64]:
    """The weight of every class of a truth: the score where only its pixels are right, all others going to one more
    class, which the truth has nothing of."""
    nowhere = len(truth_px)
    scores = []
    for right in range(nowhere):
        counts = np.zeros((nowhere + 1, nowhere + 2), np.int64)
        for k, n in enumerate(truth_px):
            counts[k, k if k == right else nowhere] = n
        scores.append(Confusion(tuple(f"c{k}" for k in range(nowhere)), counts).inverse_log_weighted_iou)
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
    lone = np.zeros((3, 4), np.int64)
    lone[1, 1] = 1
    assert math.isnan(Confusion(NAMES, lone).inverse_log_weighted_iou)


def test_perfect_answer() -> None:
    confusion = counted([(0, 0), (1, 1), (2, 2), (2, 2)])
    for score in (confusion.iou, confusion.dice, confusion.precision, confusion.recall):
        assert score.tolist() == [1, 1, 1]
    assert confusion.miou == confusion.miou_named == confusion.frequency_weighted_iou == confusion.accuracy == 1


def test_errors() -> None:
    one = np.zeros((1, 2), np.uint8)
    with pytest.raises(ValueError, match=r"the prediction holds the values 3, 7; expected 0\.\.2 or 255"):
        Confusion.empty(NAMES).add(one, np.array([[3, 7]], np.uint8))
    with pytest.raises(ValueError, match=r"the truth holds the value 9; expected 0\.\.2, or 255 in the truth"):
        Confusion.empty(NAMES).add(one + np.uint8(9), one)
    with pytest.raises(ValueError, match=r"the answer holds the value 5; expected 0\.\.1"):
        count_pairs(one, one + np.uint8(5), (2, 2))
    with pytest.raises(ValueError, match=r"truth \(1, 2\) and answer \(2, 1\) have different shapes"):
        Confusion.empty(NAMES).add(one, one.T)
    with pytest.raises(ValueError, match="cannot be pooled"):
        Confusion.empty(NAMES).plus(Confusion.empty(("a",)))


@given(st.lists(pixel_pairs, min_size=1, max_size=4))
def test_stacked_matrices_score_as_each_alone(sets: list[list[tuple[int, int]]]) -> None:
    each = [counted(pairs) for pairs in sets]
    stack = np.stack([c.matrix for c in each])
    for function, score in ((iou_of, "iou"), (dice_of, "dice"), (accuracy_of, "accuracy")):
        np.testing.assert_array_equal(function(stack), [getattr(c, score) for c in each])
    np.testing.assert_array_equal(mean_of(iou_of(stack)), [c.miou for c in each])
