"""Confusion matrices against a loop over pixels, in any order and in any blocks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluations import NAMES, counted, pixel_pairs

from wsipipe.evaluate import confusion as counting
from wsipipe.evaluate.confusion import Confusion, count_pairs


@given(pixel_pairs)
def test_counts_agree_with_a_loop_over_pixels(pairs: list[tuple[int, int]]) -> None:
    confusion = counted(pairs)
    slow = np.zeros((3, 3), np.int64)
    for truth, answer in pairs:
        if truth != 255:
            slow[truth, 0 if answer == 255 else answer] += 1
    np.testing.assert_array_equal(confusion.matrix, slow)
    np.testing.assert_array_equal(confusion.truth_px, slow.sum(1))
    assert confusion.pixels == slow.sum()
    assert confusion.unpredicted == sum(t != 255 and a == 255 for t, a in pairs)


@given(pixel_pairs, st.randoms(use_true_random=False))
def test_the_order_of_pixels_does_not_matter(pairs: list[tuple[int, int]], order: random.Random) -> None:
    shuffled = list(pairs)
    order.shuffle(shuffled)
    np.testing.assert_array_equal(counted(pairs).counts, counted(shuffled).counts)


@given(pixel_pairs, st.integers(0, 40), st.integers(0, 40))
def test_any_split_into_blocks_gives_the_same_matrix(pairs: list[tuple[int, int]], i: int, j: int) -> None:
    i, j = sorted((i, j))
    together = Confusion.empty(NAMES)
    for block in (pairs[:i], pairs[i:j], pairs[j:]):
        together = together.plus(counted(block))
    np.testing.assert_array_equal(together.counts, counted(pairs).counts)


def test_strips_of_a_large_mask_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth, answer = rng.choice([0, 1, 2, 255], (2, 31, 17)).astype(np.uint8)
    whole, strips = Confusion.empty(NAMES), Confusion.empty(NAMES)
    whole.add(truth, answer)
    monkeypatch.setattr(counting, "_STRIP_PX", 100)
    strips.add(truth, answer)
    np.testing.assert_array_equal(whole.counts, strips.counts)


def test_not_predicted_is_class_0_and_has_a_count_of_its_own() -> None:
    confusion = counted([(1, 255), (0, 255), (1, 1), (255, 255)])
    assert confusion.unpredicted == 2
    assert confusion.matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_errors() -> None:
    one = np.zeros((1, 2), np.uint8)
    with pytest.raises(ValueError, match=r"the mask holds the values 3, 7; expected 0\.\.2 or 255"):
        Confusion.empty(NAMES).add(one, np.array([[3, 7]], np.uint8))
    with pytest.raises(ValueError, match=r"the truth holds the value 9; expected 0\.\.2, or 255 in the truth"):
        Confusion.empty(NAMES).add(one + np.uint8(9), one)
    with pytest.raises(ValueError, match=r"the answer holds the value 5; expected 0\.\.1"):
        count_pairs(one, one + np.uint8(5), (2, 2))
    with pytest.raises(ValueError, match=r"truth \(1, 2\) and answer \(2, 1\) have different shapes"):
        Confusion.empty(NAMES).add(one, one.T)
    with pytest.raises(ValueError, match="cannot be pooled"):
        Confusion.empty(NAMES).plus(Confusion.empty(("a",)))
