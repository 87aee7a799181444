"""Scores of pooled counts against the definitions, and the reading of a judgement."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.methods_bench.score import mean_scores, pooled, read_judged, scores


@given(st.integers(2, 5), st.integers(0, 10_000), st.booleans())
def test_scores_are_those_of_the_pixels_one_by_one(size: int, seed: int, one: bool) -> None:
    rng = np.random.default_rng(seed)
    truth, answer = rng.integers(0, size, (2, 60))
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (truth, answer), 1)
    only = int(rng.integers(1, size)) if one else 0
    if only:
        truth, answer = truth == only, answer == only
    named = [k for k in range(1, 2 if only else size) if (truth == k).any() or (answer == k).any()]
    dice = [2 * ((truth == k) & (answer == k)).sum() / ((truth == k).sum() + (answer == k).sum()) for k in named]
    recall = [((truth == k) & (answer == k)).sum() / (truth == k).sum() for k in named if (truth == k).any()]
    iou = [((truth == k) & (answer == k)).sum() / ((truth == k) | (answer == k)).sum() for k in [0, *named]]
    got = scores(counts, only)
    assert got["dice"] == pytest.approx(np.mean(dice)) if named else math.isnan(got["dice"])
    assert got["recall"] == pytest.approx(np.mean(recall)) if recall else math.isnan(got["recall"])
    assert got["miou"] == pytest.approx(np.mean(iou))
    assert got["accuracy"] == pytest.approx((truth == answer).mean())


def test_an_empty_mask_has_no_precision_and_a_dice_of_zero() -> None:
    got = scores(np.array([[80, 0], [20, 0]]))
    assert got["dice"] == got["recall"] == 0
    assert math.isnan(got["precision"])
    assert got["miou"] == pytest.approx(0.4)


def test_folds_are_pooled_by_pixels_not_by_their_scores() -> None:
    a, b = np.array([[10, 0], [0, 90]]), np.array([[10, 0], [10, 0]])
    assert scores(pooled([a, b]))["dice"] == pytest.approx(180 / 190)


def test_means_skip_what_is_not_defined() -> None:
    assert mean_scores([{"a": 1.0}, {"a": math.nan}, {"a": 2.0}]) == {"a": 1.5}


def test_a_judgement_of_the_product_is_read(tmp_path: Path) -> None:
    answer = {"confusion": [[5, 1], [2, 3]], "intervals": {"dice": {"none": [0, 1], "bad": [0.2, 0.6]}}}
    empty = {"confusion": [[6, 0], [5, 0]], "intervals": {}}
    data = {"classes": ["bad"], "answer_names": ["m", "empty"], "answers": {"empty": empty, "m": answer}}
    (tmp_path / "evaluate.json").write_text(json.dumps(data | {"slide_auc": {"bad": 0.75}}))
    judged = read_judged(tmp_path)
    assert judged.own == "m"
    assert judged.answers["m"].tolist() == [[5, 1], [2, 3]]
    assert judged.dice_ends == (0.2, 0.6)
    assert judged.auc == 0.75
    (tmp_path / "evaluate.json").write_text(json.dumps(data | {"slide_auc": {}, "answer_names": ["empty", "m"]}))
    judged = read_judged(tmp_path)
    assert judged.dice_ends is None
    assert judged.auc is None
