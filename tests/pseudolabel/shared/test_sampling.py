"""Balanced sampling, and how many instances the prevalence rule selects."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.pseudolabel.shared.sampling import balanced_sample, class_pools, prevalence_k

NAN = float("nan")


@pytest.mark.parametrize(
    ("count", "ratio", "selected"),
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
def test_the_number_of_selected_instances(count: int, ratio: float, selected: int):
    assert prevalence_k(count, ratio) == selected


@given(st.integers(1, 10_000), st.integers(1, 1000))
def test_the_number_of_selected_instances_is_the_formula_in_whole_numbers(count: int, thousandths: int):
    assert prevalence_k(count, thousandths / 1000) == max(1, math.ceil(-(-count * thousandths // 1000)) - 1)


def test_pools_hold_the_rows_with_and_without_each_class_and_no_unknown_ones():
    labels = torch.tensor([[1, 0], [0, NAN], [NAN, 0], [1, 0]])
    assert [p.tolist() for p in class_pools(labels)] == [[0, 3], [1], [0, 2, 3]]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 1000))
def test_every_pool_gives_as_many_members(sizes: list[int], per_pool: int, seed: int):
    pools = [torch.arange(n) + 10 * i for i, n in enumerate(sizes)]
    drawn = balanced_sample(pools, per_pool, torch.Generator().manual_seed(seed)).view(len(sizes), per_pool)
    for members, pool in zip(drawn, pools, strict=True):
        assert set(members.tolist()) <= set(pool.tolist())
