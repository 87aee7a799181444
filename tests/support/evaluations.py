"""Evaluations made by hand, complete or with nothing but counts, and confusion matrices of pairs of pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st

from wsipipe.evaluate.bootstrap import pixel_intervals, resample
from wsipipe.evaluate.calibration import reliability
from wsipipe.evaluate.confusion import Confusion
from wsipipe.evaluate.coverage import Coverage
from wsipipe.evaluate.evaluation import Evaluation, SlideLevel, Spread
from wsipipe.evaluate.froc import Detections, Hits, froc
from wsipipe.evaluate.metrics import scores_of
from wsipipe.runtime.ledger import Report

NAMES = ("a", "b")

pixel_pairs = st.lists(st.tuples(st.sampled_from([0, 1, 2, 255]), st.sampled_from([0, 1, 2, 255])), max_size=40)
"""(truth, answer) of pixels, two classes."""


def counted(pairs: list[tuple[int, int]]) -> Confusion:
    """The confusion of pixels (truth, answer)."""
    confusion = Confusion.empty(NAMES)
    array = np.array(pairs, np.uint8).reshape(-1, 2)
    confusion.add(array[:, 0].copy(), array[:, 1].copy())
    return confusion


def evaluation_of(n: int = 0) -> Evaluation:
    """Class b occurs neither in truth nor in the answer: its scores are undefined. Of `n` slides there is a spread."""
    counts = np.zeros((3, 4), np.int64)
    counts[:2, :2] = [[50, 10], [20, 20]]
    counts[1, 3] = 5
    net = Confusion(("a", "b"), counts)
    tissue = Confusion.of(("a", "b"), np.array([[0, 60, 0], [0, 45, 0], [0, 0, 0]]))
    report = Report()
    report.add("s2", "failed", "no labels/net")
    coverage = Coverage("given", 2, 105, 20, 50, 5, 0, 5, 0, {})
    slides = tuple(f"s{i}" for i in range(n or 2))
    plain = Evaluation(("a", "b"), {"net": net, "all tissue is a": tissue}, slides, coverage, report)
    if not n:
        return plain
    matrices = np.stack([net.matrix] * n)
    matrices[0, 0, 0] = 0
    if n >= 8:
        spread = Spread(intervals=pixel_intervals(matrices, resample(slides, 0)))
    else:
        spread = Spread(by_group={s: scores_of(m) for s, m in zip(slides, matrices, strict=True)})
    truth, scores = np.array([[i % 2 > 0, False] for i in range(n)]), np.linspace(0, 1, 2 * n).reshape(n, 2)
    level = SlideLevel(
        scores,
        truth,
        np.array([0.75, np.nan]),
        (np.array([0.5, np.nan]), np.array([1.0, np.nan])) if n >= 8 else None,
        "labels",
    )
    pixels = [reliability(np.array([0.2, 0.9]), np.array([30.0, 10]), np.array([3.0, 8]))] * 2
    curves = {
        "a": froc([Hits(np.array([0.9, np.nan]), np.array([0.8]), 1)] * n),
        "b": froc([Hits(np.zeros(0), np.array([0.8]), 0)] * n),
    }
    points = {"s0": {"a": Detections(np.array([[1.0, 2.0]]), np.array([0.5])), "b": Detections.none()}}
    return dataclasses.replace(
        plain,
        groups=slides,
        spread={"net": spread},
        slide_level=level,
        pixel_calibration=pixels,
        froc=curves,
        detections=points,
    )
