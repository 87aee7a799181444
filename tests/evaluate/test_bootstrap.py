"""Resampling: whole groups together, the same numbers as a loop over slides, and intervals that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from wsipipe.evaluate import bootstrap
from wsipipe.evaluate.bootstrap import froc_interval, group_names, interval, pixel_intervals, resample
from wsipipe.evaluate.froc import Hits
from wsipipe.evaluate.metrics import all_metrics, scores_of


def test_the_slides_of_a_patient_are_drawn_together() -> None:
    groups = group_names(("a", "b", "c", "d"), {"a": "p", "c": "p", "d": ""})
    assert groups == ("p", "b", "p", "d")
    weights = resample(groups, 0)
    assert weights.shape == (bootstrap.RESAMPLES, 4)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(1), 3)
    assert len(np.unique(weights[:, 1])) == 4
    np.testing.assert_array_equal(weights, resample(groups, 0))
    assert (weights != resample(groups, 1)).any()


@given(st.integers(0, 1000))
@examples(15)
def test_intervals_agree_with_a_loop_over_resamples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 50, (9, 3, 3)) * (rng.random((9, 3, 3)) < 0.6)
    weights = resample(tuple("aabcdefgh"), seed)[:60]
    slow: dict[str, list[object]] = {m.name: [] for m in all_metrics()}
    for weight in weights.astype(int):
        counts = np.zeros((3, 3), np.int64)
        for times, matrix in zip(weight, matrices, strict=True):
            counts += times * matrix
        for score, value in scores_of(counts).items():
            slow[score].append(value)
    assert set(slow) == set(pixel_intervals(matrices, weights))
    for score, (low, high) in pixel_intervals(matrices, weights).items():
        expected = np.nanquantile(np.array(slow[score], float), [0.025, 0.975], axis=0)
        np.testing.assert_allclose([low, high], expected, rtol=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(0, 99))
@examples(15)
def test_the_interval_of_froc_is_that_of_the_share_of_found_lesions(found: list[bool], seed: int) -> None:
    """One lesion a slide and no false positive: the score is the share of slides whose lesion is found."""
    hits = [Hits(np.array([0.7 if f else np.nan]), np.zeros(0), 0) for f in found]
    weights = resample([f"s{i}" for i in range(len(found))], seed)[:200]
    shares = (weights * np.array(found)).sum(1) / weights.sum(1)
    assert froc_interval(hits, weights) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])))


def test_the_interval_of_froc_without_lesions_is_nothing() -> None:
    hits = [Hits(np.zeros(0), np.array([0.5]), 0)] * 3
    assert np.isnan(froc_interval(hits, resample(("a", "b", "c"), 0)[:20])).all()


def test_an_interval_of_nothing_is_nothing() -> None:
    values = np.full((10, 2), np.nan)
    values[:5, 0] = [0, 1, 2, 3, 4]
    low, high = interval(values)
    assert (low[0], high[0]) == pytest.approx((0.1, 3.9))
    assert np.isnan([low[1], high[1]]).all()


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, hits, truth = np.random.default_rng(0), 0, 0.8
    for _ in range(300):
        right = rng.beta(8, 2, 40)
        matrices = np.zeros((40, 2, 2), np.int64)
        matrices[:, 1, 1] = np.rint(right * 1000)
        matrices[:, 1, 0] = 1000 - matrices[:, 1, 1]
        low, high = pixel_intervals(matrices, resample(tuple(map(str, range(40))), 1))["accuracy"]
        hits += bool(low <= truth <= high)
    assert 0.89 <= hits / 300 <= 0.98
