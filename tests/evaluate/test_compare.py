"""Answers side by side: the same metrics as alone, how far they agree, and places that are worth a look."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from matplotlib.axes import Axes
from numpy.typing import NDArray

from wsipipe.config.options import EvaluateConfig, RunConfig
from wsipipe.errors import ConfigError, StoreError
from wsipipe.evaluate.cohort import EvaluateInputs
from wsipipe.evaluate.compare import CompareOptions, rows_of, text_table, write_comparison
from wsipipe.evaluate.compare import run as compare
from wsipipe.evaluate.examples import SIDE_PX, choose, coloured, tinted, write_examples
from wsipipe.evaluate.metrics import scores_of
from wsipipe.evaluate.stage import run as evaluate_stores
from wsipipe.geometry import Window
from wsipipe.labels import LabelTable
from wsipipe.runtime.context import RunContext
from wsipipe.store import SlideStore
from wsipipe.store.layout import COLOURS

SIZE = (2048, 1024)


def grid(value_left: int, value_right: int) -> NDArray[np.uint8]:
    mask = np.full((SIZE[1], SIZE[0]), value_left, np.uint8)
    mask[:, SIZE[0] // 2 :] = value_right
    return mask


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(runs=str(tmp_path / "runs"))


@pytest.fixture
def stores(make_store: Callable[..., Path]) -> list[Path]:
    """Two slides of 2048 x 1024 px, three quarters tissue: `one` paints the left half, `two` a quarter more."""
    wide = grid(1, 0)
    wide[:, 1024:1536] = 1
    wide[:128, :128] = 255
    tissue = grid(1, 1)
    tissue[512:, 1024:] = 0
    return [make_store(n, tissue, one=grid(1, 0), two=wide) for n in ("s1", "s2")]


def test_each_answer_is_evaluated_as_alone(
    stores: list[Path], make_truth: Callable[..., Path], run: RunConfig, tmp_path: Path
) -> None:
    for name in ("s1", "s2"):
        truth = make_truth(name, grid(1, 0))
    config = EvaluateConfig(truth=f"{truth}/{{slide_id}}.truth.png")
    found = compare(EvaluateInputs(stores), CompareOptions((), config), RunContext(run))
    assert found.names == ("one", "two")
    rows = rows_of(found)
    for row in rows:
        alone = evaluate_stores(EvaluateInputs(stores), replace(config, masks=row["masks"]), RunContext(run)).answers[
            row["masks"]
        ]
        for score in ("dice", "iou", "precision", "recall"):
            assert row[score] == scores_of(alone.matrix)[score][1]
    assert rows[0]["dice"] == 1
    assert rows[1]["dice"] < 1
    write_comparison(found, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [r["masks"] for r in written] == ["one", "two"]
    assert [r["slide_auc"] for r in written] == ["", ""], "there are no scores"
    text = text_table(found)
    assert "1.000" in text.splitlines()[2]


def test_each_class_has_the_slide_auc_of_its_own_scores(
    make_store: Callable[..., Path], make_truth: Callable[..., Path], add_scores: Callable[..., None], run: RunConfig
) -> None:
    paths = []
    for i, value in enumerate((1, 1, 2, 2)):
        truth = np.full((64, 64), value, np.uint8)
        paths.append(make_store(f"s{i}", np.ones_like(truth), ("a", "b"), one=truth, two=truth))
        folder = make_truth(f"s{i}", truth)
        for name, of_classes in (("one", (200 - 10 * i, 200 - 10 * i)), ("two", (99, (10, 30, 20, 40)[i]))):
            values = np.broadcast_to(np.array(of_classes, np.uint8)[:, None, None], (2, 8, 8))
            add_scores(paths[-1], name, values, 8, ("a", "b"))
    rows = rows_of(
        compare(EvaluateInputs(paths), CompareOptions((), EvaluateConfig(truth=str(folder))), RunContext(run))
    )
    expected = {("one", "a"): 1, ("one", "b"): 0, ("two", "a"): 0.5, ("two", "b"): 0.75}
    assert {(r["masks"], r["class"]): r["slide_auc"] for r in rows} == expected


def test_agreement_and_shares_are_counted_on_the_tissue_that_both_speak_of(stores: list[Path], run: RunConfig) -> None:
    found = compare(EvaluateInputs(stores), CompareOptions(("one", "two"), EvaluateConfig()), RunContext(run))
    one = 1024 * 1024 - 128 * 128
    two = one + 512 * 512
    assert found.agreement["one", "two"][1] == pytest.approx(2 * one / (one + two))
    tissue = 2048 * 1024 - 1024 * 512
    np.testing.assert_array_equal(
        found.counts, [[2 * (tissue - 2**20), 2 * 2**20, 0], [2 * (tissue - two - 128**2), 2 * two, 2 * 128**2]]
    )
    assert found.exit_code == 0
    assert "Dice" not in text_table(found).splitlines()[0], "no truth"


def test_fewer_than_two_answers_and_other_classes_are_refused(
    stores: list[Path], make_store: Callable[..., Path], run: RunConfig
) -> None:
    with pytest.raises(ConfigError, match="needs two or more masks, not one; every store has one"):
        compare(EvaluateInputs(stores), CompareOptions(("one",), EvaluateConfig()), RunContext(run))
    other = make_store("s3", grid(1, 1), ("b",), one=grid(1, 0), two=grid(0, 1))
    with pytest.raises(ConfigError, match=r"have different classes \(a; b\)"):
        compare(EvaluateInputs([*stores, other]), CompareOptions((), EvaluateConfig()), RunContext(run))
    with pytest.raises(StoreError, match="no labels/three"):
        compare(EvaluateInputs(stores), CompareOptions(("one", "three"), EvaluateConfig()), RunContext(run))


def test_the_places_shown_are_those_where_the_answers_differ_or_the_truth_is_mixed(stores: list[Path]) -> None:
    opened = [SlideStore(p) for p in stores]
    without = choose(opened, ("one", "two"), {})
    assert [(p.store.slide_id, p.window.x_px) for p in without] == [("s1", 1024), ("s2", 1024), ("s1", 0), ("s2", 0)]
    assert [p.interest for p in without] == pytest.approx([0.5, 0.5, 1 / 64, 1 / 64])

    def half(window: Window) -> NDArray[np.uint8]:
        mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
        mask[:256] = 1
        return mask if window.x_px else mask * 0

    known = choose(opened, ("one", "two"), {"s1": half, "s2": lambda w: half(w)[::-1] * 0})
    assert [(p.store.slide_id, p.window.x_px, p.interest) for p in known] == [("s1", 1024, 0.25)]


def test_a_split_leaves_the_other_slides_out(
    stores: list[Path], run: RunConfig, table: Callable[[str], LabelTable]
) -> None:
    labels = table("slide_id,label,split\ns1,a,train\ns2,a,test\n")
    both, one = (
        compare(EvaluateInputs(stores, labels), CompareOptions((), EvaluateConfig(split=s)), RunContext(run))
        for s in ("", "test")
    )
    np.testing.assert_array_equal(both.counts, 2 * one.counts)
    with pytest.raises(ConfigError, match="none of the 2 stores is in split 'val'"):
        compare(EvaluateInputs(stores, labels), CompareOptions((), EvaluateConfig(split="val")), RunContext(run))
    with pytest.raises(ConfigError, match="'test' needs a labels file"):
        compare(EvaluateInputs(stores), CompareOptions((), EvaluateConfig(split="test")), RunContext(run))


def test_a_split_holds_the_same_slides_for_compare_and_evaluate(
    stores: list[Path], make_truth: Callable[..., Path], run: RunConfig, table: Callable[[str], LabelTable]
) -> None:
    """Labels may name slides by their files."""
    for name in ("s1", "s2"):
        folder = make_truth(name, grid(1, 0))
    labels = table("slide_id,label,split\ns1.svs,a,train\ns2.svs,a,test\n")
    inputs = EvaluateInputs(stores, labels)
    config = EvaluateConfig(masks="one", truth=str(folder), split="test")
    found = compare(inputs, CompareOptions((), config), RunContext(run))
    assert [p.stem for p in found.paths] == ["s2"]
    for name, evaluation in found.evaluations.items():
        alone = evaluate_stores(inputs, replace(config, masks=name), RunContext(run))
        assert evaluation.slides == alone.slides == ("s2",)


def test_what_is_no_store_is_said_before_its_split(
    run: RunConfig, table: Callable[[str], LabelTable], tmp_path: Path
) -> None:
    labels = table("slide_id,label,split\na,stroma,train\n")
    with pytest.raises(StoreError, match="camel: not a store"):
        compare(
            EvaluateInputs([tmp_path / "camel"], labels),
            CompareOptions(("first", "second"), EvaluateConfig(split="train")),
            RunContext(run),
        )


def test_of_a_slide_smaller_than_a_place_all_is_shown(make_store: Callable[..., Path], tmp_path: Path) -> None:
    ones = np.ones((300, 500), np.uint8)
    half = ones.copy()
    half[:, :200] = 0
    path = make_store("small", ones, one=ones, two=half)
    (place,) = choose([SlideStore(path)], ("one", "two"), {})
    assert (place.window.width_px, place.window.height_px) == (500, 300)
    assert place.interest == pytest.approx(0.4, abs=0.02)
    assert len(write_examples([path], ("one", "two"), ("a",), EvaluateConfig(), tmp_path / "p.png")) == 1


def test_the_picture_has_a_row_for_each_place_and_no_column_for_scores_that_no_place_has(
    stores: list[Path], tmp_path: Path, add_scores: Callable[..., None]
) -> None:
    add_scores(stores[0], "one", np.full((1, 128, 256), 200, np.uint8), 8, ("a",))
    places = write_examples(stores, ("one", "two"), ("a",), EvaluateConfig(), tmp_path / "p.png")
    picture = imagecodecs.png_decode((tmp_path / "p.png").read_bytes())
    assert len(places) == 4
    assert picture.shape[0] == pytest.approx(120 * (1.75 * 4 + 0.4), abs=2)
    assert picture.shape[1] == pytest.approx(120 * 1.7 * 4, abs=2), "image, scores and mask of one, mask of two"


@pytest.mark.parametrize("classes", [("a",), ("a", "b")], ids=len)
def test_every_panel_shows_what_its_head_says_at_its_place(
    classes: tuple[str, ...],
    make_store: Callable[..., Path],
    make_truth: Callable[..., Path],
    add_scores: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    truth, one, two = (np.kron(rng.integers(0, len(classes) + 1, (4, 8)), np.ones((256, 256))) for _ in range(3))
    masks = {"truth": truth.astype(np.uint8), "one": one.astype(np.uint8), "two": two.astype(np.uint8)}
    scores = {n: rng.integers(0, 256, (len(classes), 128, 256)).astype(np.uint8) for n in ("one", "two")}
    path = make_store("s", grid(1, 1), classes, one=masks["one"], two=masks["two"])
    for name, values in scores.items():
        add_scores(path, name, values, 8, classes)
    drawn: list[tuple[Axes, NDArray[np.generic]]] = []
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **how: drawn.append((self, image)))
    config = EvaluateConfig(truth=str(make_truth("s", masks["truth"])))
    places = write_examples([path], ("one", "two"), classes, config, tmp_path / "p.png")
    assert sorted(p.window.x_px for p in places) == [0, 1024]
    at = [(a.get_subplotspec().rowspan.start, a.get_subplotspec().colspan.start) for a, _ in drawn]
    heads = {col: a.get_title() for (row, col), (a, _) in zip(at, drawn, strict=True) if row == 0}
    assert [*heads.values()] == ["image", "truth", "one: scores", "one: mask", "two: scores", "two: mask"]
    shown = {(row, heads[col]): image for (row, col), (_, image) in zip(at, drawn, strict=True)}
    assert len(shown) == 12
    for row, place in enumerate(places):
        x = place.window.x_px
        rgb = SlideStore(path).read(Window(x // 4, 0, 256, 256), 1)
        np.testing.assert_array_equal(shown[row, "image"], rgb)
        for head, name in (("truth", "truth"), ("one: mask", "one"), ("two: mask", "two")):
            np.testing.assert_array_equal(shown[row, head], tinted(rgb, masks[name][2::4, x + 2 : x + 1024 : 4]))
        for name, values in scores.items():
            here = values[:, :, x // 8 : x // 8 + 128]
            expected = coloured(here) if len(classes) > 1 else here[0] / 255
            np.testing.assert_array_equal(shown[row, f"{name}: scores"], expected)


def test_scores_of_several_classes_have_the_colour_of_the_strongest_and_are_as_bright_as_it() -> None:
    scores = np.array([[0, 255, 51, 10, 0], [0, 200, 102, 10, 0], [0, 0, 0, 0, 255]], np.uint8)[:, None]
    got = coloured(scores)
    assert got.shape == (1, 5, 3)
    assert got[0, 0].tolist() == [0, 0, 0], "nothing is black"
    assert got[0, [1, 4]].tolist() == [list(COLOURS[0]), list(COLOURS[2])]
    np.testing.assert_allclose(got[0, 2], np.array(COLOURS[1]) * 0.4, atol=1)
    np.testing.assert_allclose(got[0, 3], np.array(COLOURS[0]) * 10 / 255, atol=1, err_msg="the first of two alike")


def test_classes_are_tinted_and_none_is_not() -> None:
    rgb = np.full((1, 3, 3), 200, np.uint8)
    got = tinted(rgb, np.array([[0, 1, 255]], np.uint8))
    assert got[0, 0].tolist() == [200, 200, 200]
    assert got[0, 1, 0] > got[0, 1, 2]
    assert got[0, 2].tolist() == [160, 160, 160]
