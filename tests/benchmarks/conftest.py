"""The benchmarks are scripts beside the package: their folder becomes importable; and a small data set is laid out."""

from __future__ import annotations

from pathlib import Path

import pytest

SMALL = """
title: two folds of two slides
slides: "{data}/images/*.png"
labels: {csv: "{data}/cases.csv", slide_id: name, label: grade, patient_id: patient, negative: [fine]}
classes: [bad]
truth: "{data}/masks/{slide_id}.png"
truth_map: 0=0,2=bad
hidden: ["{data}/more/*.png"]
folds: [[1], [2, 3]]
tile: {mpp_override: 0.5}
pseudolabel: {encoder: resnet18_half}
segment: {steps: 900}
methods: {cam: {}, other: {method: camel, pseudolabel: {self_train: false}, params: {lattice: 8}}}
budgets:
  quick: {folds: 1, segment: {steps: 5}, methods: {cam: {params: {steps: 3}}}}
  full: {seeds: 2, pretrain: {steps: 7}}
  brief: {take: [other]}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with small.yaml and data/: images a, b, c of patients 1, 2, 3, their masks, and one mask more."""
    data = tmp_path / "data"
    for folder in ("images", "masks", "more"):
        (data / folder).mkdir(parents=True)
    for i, name in enumerate("abc"):
        (data / "images" / f"{name}.png").write_bytes(b"image %d" % i)
        (data / "masks" / f"{name}.png").write_bytes(b"mask %d" % i)
    (data / "more" / "a.png").write_bytes(b"instances")
    (data / "cases.csv").write_text("name,patient,grade,width\na,1,bad,9\nb,2,fine,9\nc,3,bad,9\n")
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path
