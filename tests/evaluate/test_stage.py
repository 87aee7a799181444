"""Evaluating stores: pooled counts against whole masks, trivial answers, splits, and failures that cost one store."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wsipipe.config.options import EvaluateConfig, RunConfig
from wsipipe.errors import ConfigError, StoreError
from wsipipe.evaluate.cohort import EvaluateInputs
from wsipipe.evaluate.evaluation import Evaluation
from wsipipe.evaluate.metrics.overlap import accuracy_of, dice_of
from wsipipe.evaluate.stage import run as evaluate_stores
from wsipipe.labels import LabelTable, read_labels
from wsipipe.runtime.context import RunContext

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
    evaluation = evaluate_stores(
        EvaluateInputs(paths),
        EvaluateConfig(masks="net", truth=str(folder), glass="scored"),
        RunContext(run, lambda task, done, total, note="": seen.append((task, done, total))),
    )
    truth, tissue, answer = (np.concatenate([m[j] for m in masks]) for j in range(3))
    assert evaluation.classes == ("a", "b")
    assert evaluation.slides == ("s0", "s1")
    assert list(evaluation.answers) == [
        "net",
        "empty",
        "all tissue is a",
        "all tissue of slides with a",
        "all tissue is b",
        "all tissue of slides with b",
    ]
    for k in (1, 2):
        assert dice_of(evaluation.answers["net"].matrix)[k] == pytest.approx(dice(truth, answer == k, k))
    only_s0 = (tissue == 1) & (np.arange(len(tissue)) < 30)[:, None]
    expected = {
        "all tissue is a": dice(truth, tissue == 1, 1),
        "all tissue of slides with a": dice(truth, tissue == 1, 1),
        "all tissue is b": dice(truth, tissue == 1, 2),
        "all tissue of slides with b": dice(truth, only_s0, 2),
    }
    for name, value in expected.items():
        assert dice_of(evaluation.answers[name].matrix)[1 if name.endswith("a") else 2] == pytest.approx(value)
        assert evaluation.answers[name].pixels == evaluation.answers["net"].pixels
    assert not evaluation.answers["empty"].matrix[:, 1:].any()
    scored = int((truth != 255).sum())
    assert evaluation.coverage.note.startswith(f"scored: {scored:,} px of 2 slides, where the truth is not ignore; ")
    assert seen[-1] == ("evaluate", 2, 2)
    assert evaluation.report.exit_code == 0
    rows = list(csv.DictReader((Path(run.runs) / "net" / "evaluate.csv").read_text().splitlines()))
    assert [r["status"] for r in rows] == ["done", "done"]


def test_masks_over_several_shards(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    truth, tissue, answer = random_masks(2, (20, 4200))
    path = make_store("wide", tissue, ("a", "b"), net=answer)
    evaluation = evaluate_stores(
        EvaluateInputs([path]),
        EvaluateConfig(masks="net", truth=str(make_truth("wide", truth)), glass="scored"),
        RunContext(run),
    )
    assert evaluation.answers["net"].pixels == (truth != 255).sum()
    assert dice_of(evaluation.answers["net"].matrix)[2] == pytest.approx(dice(truth, answer == 2, 2))


def test_truth_map_says_what_values_mean(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    truth = np.array([[0, 1, 2, 2]] * 4, np.uint8)
    tissue = np.array([[0, 1, 1, 1]] * 4, np.uint8)
    answer = np.array([[0, 0, 1, 255]] * 4, np.uint8)
    path = make_store("s", tissue, ("malignant",), net=answer)
    config = EvaluateConfig(masks="net", truth=str(make_truth("s", truth)), truth_map="0=ignore,1=0,2=malignant")
    confusion = evaluate_stores(EvaluateInputs([path]), config, RunContext(run)).answers["net"]
    assert confusion.matrix.tolist() == [[4, 0], [4, 4]]
    assert confusion.unpredicted == 4


def test_value_without_a_meaning_is_an_error_of_usage(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    tissue = np.ones((4, 4), np.uint8)
    path = make_store("s", tissue, ("a",), net=tissue)
    folder = make_truth("s", tissue * 7)
    with pytest.raises(ConfigError, match=r"s\.truth\.png: holds values 7 that have no meaning.*give --truth-map"):
        evaluate_stores(EvaluateInputs([path]), EvaluateConfig(masks="net", truth=str(folder)), RunContext(run))


@pytest.fixture
def three(make_store: Maker, make_truth: Maker) -> tuple[list[Path], Path]:
    """Stores s0, s1, s2, of which s2 has no truth."""
    tissue = np.ones((6, 6), np.uint8)
    for i in range(2):
        folder = make_truth(f"s{i}", tissue)
    return [make_store(f"s{i}", tissue, net=tissue) for i in range(3)], folder


def evaluate(three: tuple[list[Path], Path], run: RunConfig, split: str = "") -> Evaluation:
    (three[1] / "labels.csv").write_text("slide_id,label,split\ns0,a,train\ns1.svs,a,test\n")
    labels = read_labels(three[1] / "labels.csv", to_fit=False)
    config = EvaluateConfig(masks="net", truth=str(three[1]), split=split)
    return evaluate_stores(EvaluateInputs(three[0], labels), config, RunContext(run))


def test_stores_without_truth_are_counted_in_the_note(three: tuple[list[Path], Path], run: RunConfig) -> None:
    evaluation = evaluate(three, run)
    assert evaluation.slides == ("s0", "s1")
    assert evaluation.coverage.note.endswith("; stores without truth, left out: 1")


def test_only_the_slides_of_the_split_are_evaluated(three: tuple[list[Path], Path], run: RunConfig) -> None:
    evaluation = evaluate(three, run, split="test")
    assert evaluation.slides == ("s1",)
    assert evaluation.coverage.note.endswith("; stores outside split test, left out: 2")


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
    assert "; stores that failed: 1" in evaluation.coverage.note


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
    assert "labels/net does not record its classes; compute or import it again" in reasons["mute"]
    assert "labels/net: the mask holds the values 9; expected 0..1 or 255" in reasons["strange"]
    assert "found 90 x 60 px; expected 6 x 6 px" in reasons["large"]
    assert "not a store" in reasons["gone"]


def test_nothing_to_evaluate(
    three: tuple[list[Path], Path], run: RunConfig, make_store: Maker, make_truth: Maker
) -> None:
    with pytest.raises(ConfigError, match="no truth given; name a folder of masks with --truth"):
        evaluate_stores(EvaluateInputs(three[0]), EvaluateConfig(masks="net"), RunContext(run))
    with pytest.raises(ConfigError, match="'test' needs a labels file with splits"):
        evaluate_stores(
            EvaluateInputs(three[0]), EvaluateConfig(masks="net", truth=str(three[1]), split="test"), RunContext(run)
        )
    with pytest.raises(ConfigError, match="none of the 3 stores is in split 'val'"):
        evaluate(three, run, split="val")
    with pytest.raises(ConfigError, match=r"no mask for any of the 1 slides \(s2\)"):
        evaluate_stores(EvaluateInputs(three[0][2:]), EvaluateConfig(masks="net", truth=str(three[1])), RunContext(run))
    make_truth("bare", np.ones((6, 6), np.uint8))
    bare = make_store("bare", np.ones((6, 6), np.uint8))
    with pytest.raises(StoreError, match=r"none of 1 stores could be evaluated; the first: .*no labels/net"):
        evaluate_stores(EvaluateInputs([bare]), EvaluateConfig(masks="net", truth=str(three[1])), RunContext(run))


# --- glass -------------------------------------------------------------------------------------------------------


def test_what_glass_is_taken_for(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    """Truth and answer of two glass pixels disagree, in both directions; one more is ignored in the truth."""
    tissue = np.array([[0, 0, 0, 1, 1, 255]], np.uint8).repeat(2, 0)
    truth = np.array([[1, 0, 255, 1, 0, 1]], np.uint8).repeat(2, 0)
    answer = np.array([[0, 1, 1, 1, 0, 255]], np.uint8).repeat(2, 0)
    path, folder = make_store("s", tissue, net=answer), make_truth("s", truth)

    def evaluated(glass: str) -> Evaluation:
        return evaluate_stores(
            EvaluateInputs([path]), EvaluateConfig(masks="net", truth=str(folder), glass=glass), RunContext(run)
        )

    given, scored, ignored = (evaluated(g) for g in ("given", "scored", "ignored"))
    assert given.answers["net"].counts.tolist() == [[6, 0, 0], [0, 2, 2]]
    assert scored.answers["net"].counts.tolist() == [[2, 2, 0], [2, 2, 2]]
    assert ignored.answers["net"].counts.tolist() == [[2, 0, 0], [0, 2, 2]]
    for e in (given, scored, ignored):
        assert all(a.pixels == e.answers["net"].pixels for a in e.answers.values())
        assert (e.coverage.glass_px, e.coverage.drawn_on_glass_px, e.coverage.answered_on_glass_px) == (4, 2, 2)
        assert e.coverage.ignored_px == 2
    assert given.coverage.glass_share == pytest.approx(4 / 10)
    assert given.coverage.note == (
        "scored: 10 px of 1 slides, where the truth is not ignore; "
        "glass (tissue mask), background in truth and answer: 40.0 % of the scored px; "
        "classes drawn on glass, not scored: 2 px (33.3 % of those drawn); "
        "classes predicted on glass, not scored: 2 px; "
        "ignore (255) in the masks, scored as background: 20.0 % of the scored px"
    )
    assert "glass (tissue mask), scored like tissue: 40.0 % of the scored px; ignore (255)" in scored.coverage.note
    assert "; glass (tissue mask), not scored: 4 px; classes drawn on glass, not scored: 2 px" in ignored.coverage.note


def test_pixels_without_a_picture_are_not_glass(make_store: Maker, make_truth: Maker, run: RunConfig) -> None:
    invalid = np.full((4, 4), 255, np.uint8)
    path = make_store("s", invalid, net=np.full((4, 4), 255, np.uint8))
    confusion = evaluate_stores(
        EvaluateInputs([path]),
        EvaluateConfig(masks="net", truth=str(make_truth("s", invalid // 255))),
        RunContext(run),
    ).answers
    assert confusion["net"].counts.tolist() == [[0, 0, 0], [0, 0, 16]]


# --- what labels say ----------------------------------------------------------------------------------------------


def test_a_negative_slide_needs_no_truth_file(
    three: tuple[list[Path], Path], run: RunConfig, table: Callable[[str], LabelTable]
) -> None:
    labels = table("slide_id,label\ns0,a\ns1,a\ns2,\n")
    evaluation = evaluate_stores(
        EvaluateInputs(three[0], labels), EvaluateConfig(masks="net", truth=str(three[1])), RunContext(run)
    )
    assert evaluation.slides == ("s0", "s1", "s2")
    assert evaluation.answers["net"].matrix.tolist() == [[0, 36], [0, 72]]
    assert evaluation.coverage.note.endswith("; slides without a truth file, evaluated as negative, as labelled: 1")
    assert evaluation.answers["all tissue of slides with a"].matrix.tolist() == [[36, 0], [0, 72]]


def cohort(make_store: Maker, make_truth: Maker, n: int) -> tuple[list[Path], Path]:
    paths = []
    for i in range(n):
        truth, tissue, answer = random_masks(i, (9, 9))
        paths.append(make_store(f"s{i}", tissue, ("a", "b"), net=answer))
        folder = make_truth(f"s{i}", truth)
    return paths, folder


def test_few_patients_are_listed_and_many_give_intervals(
    make_store: Maker, make_truth: Maker, run: RunConfig, table: Callable[[str], LabelTable]
) -> None:
    paths, folder = cohort(make_store, make_truth, 9)
    config = EvaluateConfig(masks="net", truth=str(folder))
    many = evaluate_stores(EvaluateInputs(paths), config, RunContext(run))
    assert many.groups == many.slides
    for answer, confusion in many.answers.items():
        spread = many.spread[answer]
        assert not spread.by_group
        low, high = spread.intervals["accuracy"]
        assert low < accuracy_of(confusion.matrix) < high
    rows = "".join(f"s{i},a,p{i // 2}\n" for i in range(9))
    few = evaluate_stores(EvaluateInputs(paths, table("slide_id,label,patient_id\n" + rows)), config, RunContext(run))
    spread = few.spread["net"]
    assert not spread.intervals
    assert list(spread.by_group) == ["p0", "p1", "p2", "p3", "p4"]
    two = evaluate_stores(EvaluateInputs(paths[2:4]), config, RunContext(run)).answers["net"]
    np.testing.assert_array_equal(spread.by_group["p1"]["dice"], dice_of(two.matrix))
    assert evaluate_stores(EvaluateInputs(paths), config, RunContext(run)).spread["net"].intervals["dice"][
        0
    ].tolist() == (many.spread["net"].intervals["dice"][0].tolist())
