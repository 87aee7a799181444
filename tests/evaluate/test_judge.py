"""Judging stores: pooled counts against whole-mask numpy, trivial answers, splits, and failures that cost one store."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wsipipe.config import EvaluateConfig, RunConfig
from wsipipe.errors import ConfigError, StoreError
from wsipipe.evaluate.judge import Evaluation, judge

Mask = NDArray[np.uint8]
Maker = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(stores=str(tmp_path / "stores"), runs=str(tmp_path / "runs"), workers=1)


def random_masks(seed: int, shape: tuple[int, int] = (30, 50)) -> tuple[Mask, Mask, Mask]:
    """truth of 0, 1, 2, 255; tissue of 0, 1, 255; answer of 0, 1, 2, 255."""
    rng = np.random.default_rng(seed)
    truth, answer = (rng.choice(np.array([0, 1, 2, 255], np.uint8), shape) for _ in range(2))
    return truth, rng.choice(np.array([0, 1, 1, 255], np.uint8), shape), answer


def dice(truth: Mask, answer: NDArray[np.bool_], k: int) -> float:
    scored = truth != 255
    hit = (answer & (truth == k)).sum()
    return float(2 * hit / ((answer & scored).sum() + (truth == k).sum()))


def test_pools_all_slides_and_adds_trivial_answers(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    masks = [random_masks(0), random_masks(1)]
    masks[1][0][masks[1][0] == 2] = 0  # slide s1 does not hold class b
    paths = []
    for i, (truth, tissue, answer) in enumerate(masks):
        paths.append(make_store(f"s{i}", tissue, ("a", "b"), net=answer))
        folder = make_truth(f"s{i}", truth)
    seen: list[tuple[str, int, int]] = []
    evaluation = judge(
        paths,
        EvaluateConfig(labels="net", truth=str(folder)),
        run,
        progress=lambda task, done, total, note="": seen.append((task, done, total)),
    )
    truth, tissue, answer = (np.concatenate([m[j] for m in masks]) for j in range(3))
    assert evaluation.classes == ("a", "b")
    assert evaluation.slides == ("s0", "s1")
    assert list(evaluation.answers) == [
        "net",
        "all tissue is a",
        "all tissue of slides with a",
        "all tissue is b",
        "all tissue of slides with b",
    ]
    for k in (1, 2):
        assert evaluation.answers["net"].dice[k] == pytest.approx(dice(truth, answer == k, k))
    only_s0 = (tissue == 1) & (np.arange(len(tissue)) < 30)[:, None]
    expected = {
        "all tissue is a": dice(truth, tissue == 1, 1),
        "all tissue of slides with a": dice(truth, tissue == 1, 1),
        "all tissue is b": dice(truth, tissue == 1, 2),
        "all tissue of slides with b": dice(truth, only_s0, 2),
    }
    for name, value in expected.items():
        assert evaluation.answers[name].dice[1] == pytest.approx(value)
        assert evaluation.answers[name].pixels == evaluation.answers["net"].pixels
    scored = int((truth != 255).sum())
    share = 100 * ((truth != 255) & (answer == 255)).sum() / scored
    assert evaluation.note == (
        f"scored: {scored:,} px of 2 slides where the truth is not ignore; "
        f"{share:.1f} % of them not predicted (taken for class 0)"
    )
    assert seen[-1] == ("evaluate", 2, 2)
    assert evaluation.report.exit_code == 0
    rows = list(csv.DictReader((Path(run.runs) / "net" / "evaluate.csv").read_text().splitlines()))
    assert [r["status"] for r in rows] == ["done", "done"]


def test_masks_over_several_shards(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    truth, tissue, answer = random_masks(2, (20, 4200))
    path = make_store("wide", tissue, ("a", "b"), net=answer)
    evaluation = judge([path], EvaluateConfig(labels="net", truth=str(make_truth("wide", truth))), run)
    assert evaluation.answers["net"].pixels == (truth != 255).sum()
    assert evaluation.answers["net"].dice[2] == pytest.approx(dice(truth, answer == 2, 2))


def test_truth_map_says_what_values_mean(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    truth = np.array([[0, 1, 2, 2]] * 4, np.uint8)
    tissue = np.array([[0, 1, 1, 1]] * 4, np.uint8)
    answer = np.array([[0, 0, 1, 255]] * 4, np.uint8)
    path = make_store("s", tissue, ("malignant",), net=answer)
    config = EvaluateConfig(labels="net", truth=str(make_truth("s", truth)), truth_map="0=ignore,1=0,2=malignant")
    confusion = judge([path], config, run).answers["net"]
    assert confusion.matrix.tolist() == [[4, 0], [4, 4]]
    assert confusion.unpredicted == 4


def test_value_without_a_meaning_is_an_error_of_usage(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    tissue = np.ones((4, 4), np.uint8)
    path = make_store("s", tissue, ("a",), net=tissue)
    folder = make_truth("s", tissue * 7)
    with pytest.raises(ConfigError, match=r"s\.truth\.png: holds values 7 that have no meaning.*give --truth-map"):
        judge([path], EvaluateConfig(labels="net", truth=str(folder)), run)


@pytest.fixture
def three(make_store: Maker, make_truth: Maker) -> tuple[list[Path], Path]:
    """Stores s0, s1, s2, of which s2 has no truth."""
    tissue = np.ones((6, 6), np.uint8)
    for i in range(2):
        folder = make_truth(f"s{i}", tissue)
    return [make_store(f"s{i}", tissue, net=tissue) for i in range(3)], folder


def evaluate(three: tuple[list[Path], Path], run: RunConfig, **more: object) -> Evaluation:
    split = {"s0": "train", "s1": "test"}
    return judge(three[0], EvaluateConfig(labels="net", truth=str(three[1]), **more), run, split)  # type: ignore[arg-type]


def test_stores_without_truth_are_counted_in_the_note(three: tuple[list[Path], Path], run: RunConfig) -> None:
    evaluation = evaluate(three, run)
    assert evaluation.slides == ("s0", "s1")
    assert evaluation.note.endswith("; stores without truth, left out: 1")


def test_only_the_asked_split_is_judged(three: tuple[list[Path], Path], run: RunConfig) -> None:
    evaluation = evaluate(three, run, split="test")
    assert evaluation.slides == ("s1",)
    assert evaluation.note.endswith("; stores outside split test, left out: 2")


@pytest.mark.parametrize(("max_failed", "exit_code"), [("0", 1), ("1", 0)])
def test_store_without_the_labels_costs_only_itself(
    three: tuple[list[Path], Path],
    run: RunConfig,
    make_store: Maker,
    make_truth: Maker,
    max_failed: str,
    exit_code: int,
) -> None:
    tissue = np.ones((6, 6), np.uint8)
    make_truth("bare", tissue)
    three[0].insert(0, make_store("bare", tissue))
    tolerant = RunConfig(stores=run.stores, runs=run.runs, max_failed=max_failed)
    evaluation = evaluate(three, tolerant)
    assert evaluation.slides == ("s0", "s1")
    assert evaluation.report.exit_code == exit_code
    assert "no labels/net; found tissue" in evaluation.report.of("failed")[0]["reason"]
    assert "; stores that failed: 1" in evaluation.note


def test_failures_of_single_stores(
    three: tuple[list[Path], Path], run: RunConfig, make_store: Maker, make_truth: Maker, tmp_path: Path
) -> None:
    tissue = np.ones((6, 6), np.uint8)
    for name in ("other", "mute", "strange"):
        make_truth(name, tissue)
    make_truth("large", np.ones((60, 90), np.uint8))
    three[0].extend(
        [
            make_store("other", tissue, ("b",), net=tissue),
            make_store("mute", tissue, (), net=tissue),
            make_store("strange", tissue, net=tissue * 9),
            make_store("large", tissue, net=tissue),
            tmp_path / "gone.zarr",
        ]
    )
    evaluation = evaluate(three, run)
    assert evaluation.slides == ("s0", "s1")
    assert evaluation.answers["net"].pixels == 72
    reasons = {r["item"]: r["reason"] for r in evaluation.report.of("failed")}
    assert "labels/net has the classes b, other stores have a; compute it again for all stores" in reasons["other"]
    assert "labels/net does not say its classes; compute or import it again" in reasons["mute"]
    assert "labels/net: the prediction holds the values 9; expected 0..1 or 255" in reasons["strange"]
    assert "found 90 x 60 px; expected 6 x 6 px" in reasons["large"]
    assert "not a store" in reasons["gone"]


def test_nothing_to_judge(three: tuple[list[Path], Path], run: RunConfig, make_store: Maker, make_truth: Maker) -> None:
    with pytest.raises(ConfigError, match="no truth given; name a folder of masks with --truth"):
        judge(three[0], EvaluateConfig(labels="net"), run)
    with pytest.raises(ConfigError, match="'test' needs a labels file with splits"):
        judge(three[0], EvaluateConfig(labels="net", truth=str(three[1]), split="test"), run)
    with pytest.raises(ConfigError, match="none of the 3 stores is to be judged in split 'val'"):
        evaluate(three, run, split="val")
    with pytest.raises(ConfigError, match=r"no mask for any of the 1 slides \(s2\)"):
        judge(three[0][2:], EvaluateConfig(labels="net", truth=str(three[1])), run)
    make_truth("bare", np.ones((6, 6), np.uint8))
    bare = make_store("bare", np.ones((6, 6), np.uint8))
    with pytest.raises(StoreError, match=r"none of 1 stores could be judged; the first: .*no labels/net"):
        judge([bare], EvaluateConfig(labels="net", truth=str(three[1])), run)
