"""The JSON of an evaluation: the keys that programs rely on, null where a value is undefined, and no arrays."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.evaluations import evaluation_of

from wsipipe.evaluate import json_output
from wsipipe.evaluate.json_output import as_json
from wsipipe.evaluate.metrics import all_metrics


def strict(data: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(data, allow_nan=False)
    back: dict[str, Any] = json.loads(text)
    return back


TOP = {
    "classes",
    "slides",
    "groups",
    "failed",
    "scored",
    "answer_names",
    "answers",
    "slide_auc",
    "slide_auc_intervals",
    "slide_truth",
    "slide_scores",
    "froc",
    "calibration",
}


@pytest.mark.parametrize("n", [0, 3, 9])
def test_keys_stay(n: int) -> None:
    data = strict(as_json(evaluation_of(n)))
    assert set(data) == TOP
    assert data["answer_names"][0] == "net"
    net = data["answers"]["net"]
    assert net["dice"] == {"none": 2 * 50 / (60 + 75), "a": pytest.approx(40 / 75), "b": None}
    assert net["truth_px"] == {"none": 60, "a": 45, "b": 0}
    assert net["confusion"] == [[50, 10, 0], [25, 20, 0], [0, 0, 0]]
    assert (net["pixels"], net["not_predicted_px"]) == (105, 5)
    assert net["accuracy"] == pytest.approx(70 / 105)
    assert (data["failed"][0]["item"], data["scored"]["glass_share"]) == ("s2", pytest.approx(20 / 105))
    assert (net["intervals"] != {}, net["by_group"] != {}) == (n == 9, n == 3)


def test_without_scores_the_keys_are_empty() -> None:
    data = as_json(evaluation_of())
    assert (data["slide_auc"], data["slide_scores"], data["froc"]) == ({}, {}, {})
    assert data["calibration"] == {"pixel": {}, "slide": {}}


def test_intervals_and_scores() -> None:
    data = strict(as_json(evaluation_of(9)))
    low, high = data["answers"]["net"]["intervals"]["miou"]
    assert low <= data["answers"]["net"]["miou"] + 0.02
    assert high >= low
    assert data["answers"]["net"]["intervals"]["dice"]["b"] == [None, None]
    assert data["slide_auc"] == {"a": 0.75, "b": None}
    assert data["slide_auc_intervals"]["a"] == [0.5, 1.0]
    assert data["slide_scores"]["s1"]["a"] == {"score": 2 / 17, "holds": True}
    assert data["froc"]["a"]["score"] == 0.5
    assert data["froc"]["a"]["interval"] is None
    assert data["froc"]["a"]["sensitivity"]["0.25"] == 0.5
    assert data["froc"]["b"]["score"] is None
    assert data["calibration"]["pixel"]["a"]["error"] == pytest.approx(0.1)
    assert len(data["calibration"]["slide"]["b"]["bins"]["count"]) == 15


def test_values_of_few_groups() -> None:
    groups = strict(as_json(evaluation_of(3)))["answers"]["net"]["by_group"]
    assert list(groups) == ["s0", "s1", "s2"]
    assert set(groups["s0"]) == {m.name for m in all_metrics()}
    assert groups["s0"]["dice"]["none"] == 0


def test_every_key_is_documented() -> None:
    data = as_json(evaluation_of(9))
    words = set(re.findall(r"\w+", json_output.__doc__ or ""))
    for part in (data, data["scored"], data["answers"]["net"], data["froc"]["a"], data["calibration"]["pixel"]["a"]):
        assert set(part) <= words
