"""Evaluations made by hand, with everything in them or nothing but counts."""

from __future__ import annotations

import dataclasses

import numpy as np

from wsipipe.evaluate.bootstrap import pixel_intervals, pixel_scores, resample
from wsipipe.evaluate.calibration import reliability
from wsipipe.evaluate.coverage import Scored
from wsipipe.evaluate.froc import Detections, Hits, froc
from wsipipe.evaluate.metrics import Confusion
from wsipipe.evaluate.result import Evaluation, SlideLevel, Spread
from wsipipe.runtime.ledger import Report


def evaluation_of(n: int = 0) -> Evaluation:
    """Class b occurs neither in truth nor in the answer: its scores are undefined. Of `n` slides there is a spread."""
    counts = np.zeros((3, 4), np.int64)
    counts[:2, :2] = [[50, 10], [20, 20]]
    counts[1, 3] = 5
    net = Confusion(("a", "b"), counts)
    tissue = Confusion.of(("a", "b"), np.array([[0, 60, 0], [0, 45, 0], [0, 0, 0]]))
    report = Report()
    report.add("s2", "failed", "no labels/net")
    scored = Scored("given", 2, 105, 20, 50, 5, 0, 5, 0, {})
    slides = tuple(f"s{i}" for i in range(n or 2))
    plain = Evaluation(("a", "b"), {"net": net, "all tissue is a": tissue}, slides, scored, report)
    if not n:
        return plain
    matrices = np.stack([net.matrix] * n)
    matrices[0, 0, 0] = 0
    if n >= 8:
        spread = Spread(intervals=pixel_intervals(matrices, resample(slides, 0)))
    else:
        spread = Spread(by_group={s: pixel_scores(m) for s, m in zip(slides, matrices, strict=True)})
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
