"""Evaluating scores: slides, lesions, calibration, detections from a CSV, and stores without scores."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsipipe.config.options import EvaluateConfig, RunConfig
from wsipipe.errors import StoreError
from wsipipe.evaluate.cohort import EvaluateInputs
from wsipipe.evaluate.stage import run as evaluate_stores
from wsipipe.labels import LabelTable
from wsipipe.runtime.context import RunContext

Maker = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), workers=1)


@pytest.fixture
def scored(make_store: Maker, make_truth: Maker, add_scores: Callable[..., None]) -> tuple[list[Path], Path]:
    """Four slides at 0.5 um/px of 640 x 640 px; a lesion of 320 um in s0 and s1, scored 200 and 100; noise in s2."""
    paths = []
    for i, score in enumerate((200, 100, 50, 0)):
        truth = np.zeros((640, 640), np.uint8)
        truth[:160, :640] = int(i < 2)
        paths.append(make_store(f"s{i}", np.ones_like(truth), net=truth))
        values = np.zeros((1, 80, 80), np.uint8)
        values[0, 10, 40] = score
        add_scores(paths[-1], "net", values, 8, ("a",))
        folder = make_truth(f"s{i}", truth)
    return paths, folder


def test_slides_lesions_and_calibration_from_scores(scored: tuple[list[Path], Path], run: RunConfig) -> None:
    config = EvaluateConfig(masks="net", truth=str(scored[1]), slide_top=0)
    evaluation = evaluate_stores(EvaluateInputs(scored[0]), config, RunContext(run))
    level = evaluation.slide_level
    assert level is not None
    np.testing.assert_allclose(level.scores[:, 0], np.array([200, 100, 50, 0]) / 255)
    assert level.truth[:, 0].tolist() == [True, True, False, False]
    assert (level.auc[0], level.source, level.intervals) == (1.0, "truth masks", None)
    assert evaluation.froc is not None
    curve = evaluation.froc["a"]
    assert (curve.lesions, curve.itc, curve.slides) == (2, 0, 4)
    assert curve.at == {0.25: 1.0, 0.5: 1.0, 1.0: 1.0, 2.0: 1.0, 4.0: 1.0, 8.0: 1.0}
    assert evaluation.detections is not None
    assert evaluation.detections["s0"]["a"].xy_px0.tolist() == [[40.5 * 8, 10.5 * 8]] or (
        evaluation.detections["s0"]["a"].xy_px0.tolist() == [[20.5 * 16, 5.5 * 16]]
    )
    assert evaluation.pixel_calibration is not None
    px = 64
    said = np.array([200, 100, 50]) / 255 * px
    zero, of_class = 4 * 640**2 - 3 * px, 2 * 160 * 640 - 2 * px
    bins = [(px - said[0]), (px - said[1]), said[2], of_class]  # each score is in a bin of its own
    assert evaluation.pixel_calibration[0].error == pytest.approx(sum(bins) / (zero + 3 * px))
    ledger = list(csv.DictReader((Path(run.runs) / "net" / "evaluate.csv").read_text().splitlines()))
    assert [(r["score a"], r["holds a"]) for r in ledger[:2]] == [("0.7843", "1"), ("0.3922", "1")]


def test_labels_say_what_a_slide_holds(
    scored: tuple[list[Path], Path], run: RunConfig, table: Callable[[str], LabelTable]
) -> None:
    labels = table("slide_id,label,x,y,width,height\ns0,a,,,,\ns1,,,,,\ns2,a,1,1,9,9\n")
    config = EvaluateConfig(masks="net", truth=str(scored[1]))
    level = evaluate_stores(EvaluateInputs(scored[0], labels), config, RunContext(run)).slide_level
    assert level is not None
    assert level.truth[:, 0].tolist() == [True, False, False, False]  # that of a region says nothing of the slide
    assert level.source == "labels, else truth masks"


def test_detections_from_elsewhere(scored: tuple[list[Path], Path], run: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("slide,x_px0,y_px0,p\ns0,320,80,0.9\ns3.svs,1,1,0.95\n")
    config = EvaluateConfig(masks="net", truth=str(scored[1]), detections=str(file))
    file.write_text(file.read_text().replace("s3.svs", "s3"))
    froc = evaluate_stores(EvaluateInputs(scored[0]), config, RunContext(run)).froc
    assert froc is not None
    assert froc["a"].at[0.25] == 0.5
    assert froc["a"].sensitivity.tolist() == [0, 0, 0.5]


def test_the_score_of_froc_has_an_interval_where_there_are_groups_enough(
    scored: tuple[list[Path], Path], run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(masks="net", truth=str(scored[1]))
    for least, has in ((5, False), (4, True)):
        monkeypatch.setattr("wsipipe.evaluate.stage.LEAST_GROUPS", least)
        froc = evaluate_stores(EvaluateInputs(scored[0]), config, RunContext(run)).froc
        assert froc is not None
        assert (froc["a"].interval is not None) == has
    assert froc["a"].interval is not None
    low, high = froc["a"].interval
    assert low <= froc["a"].score <= high


def test_scores_of_other_classes_are_refused(
    make_store: Maker, make_truth: Maker, add_scores: Callable[..., None], run: RunConfig
) -> None:
    tissue = np.ones((16, 16), np.uint8)
    path = make_store("s", tissue, net=tissue)
    add_scores(path, "net", np.zeros((1, 2, 2), np.uint8), 8, ("b",))
    with pytest.raises(StoreError, match="scores and labels/net differ in classes"):
        evaluate_stores(
            EvaluateInputs([path]), EvaluateConfig(masks="net", truth=str(make_truth("s", tissue))), RunContext(run)
        )


def test_a_slide_without_scores_is_counted(
    scored: tuple[list[Path], Path], run: RunConfig, make_store: Maker, make_truth: Maker
) -> None:
    tissue = np.ones((16, 16), np.uint8)
    make_truth("s4", tissue)
    paths = [*scored[0], make_store("s4", tissue, net=tissue)]
    evaluation = evaluate_stores(
        EvaluateInputs(paths), EvaluateConfig(masks="net", truth=str(scored[1])), RunContext(run)
    )
    assert evaluation.coverage.note.endswith("; slides without scores, left out of slide AUC and calibration: 1")
    assert evaluation.slide_level is not None
    assert np.isnan(evaluation.slide_level.scores[:, 0]).tolist() == [False] * 4 + [True]
    assert evaluation.slide_level.auc[0] == 1
    assert evaluation.froc is None
