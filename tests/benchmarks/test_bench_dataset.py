"""Data sets of benchmarks/quality/methods.py: budgets, folds, labels, and those that come with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.methods_bench.dataset import Arm, DataSet, Wrong, merged, read_dataset

OWN = Path(__file__).resolve().parents[2] / "benchmarks" / "quality" / "methods_data"


def read(small: Path, budget: str = "quick", **cut: object) -> DataSet:
    return read_dataset(small / "small.yaml", small / "data", budget, **cut)


def test_a_budget_replaces_what_it_names_and_nothing_else(small: Path) -> None:
    quick, full = read(small), read(small, "full")
    assert quick.sections["segment"] == {"steps": 5}
    assert full.sections["segment"] == {"steps": 900}
    assert full.sections["pretrain"] == {"steps": 7}
    assert quick.arms == (
        Arm("cam", "cam", {}, {"steps": 3}),
        Arm("other", "camel", {"self_train": False}, {"lattice": 8}),
    )
    assert [f.number for f in quick.folds] == [1]
    assert [f.test_patients for f in full.folds] == [("1",), ("2", "3")]
    assert (quick.seeds, full.seeds) == (1, 2)


def test_a_budget_says_which_methods_take_part_unless_others_are_asked_for(small: Path) -> None:
    assert [a.name for a in read(small, "brief").arms] == ["other"]
    assert [a.name for a in read(small, "brief", methods=["cam"]).arms] == ["cam"]


def test_methods_folds_and_seeds_can_be_chosen(small: Path) -> None:
    data = read(small, methods=["other"], folds=[2], seeds=4)
    assert [a.name for a in data.arms] == ["other"]
    assert [f.number for f in data.folds] == [2]
    assert data.seeds == 4


def test_labels_get_the_columns_of_the_product_and_the_split_of_the_fold(small: Path) -> None:
    data = read(small, "full")
    rows = data.label_rows(small / "made", data.folds[1])
    assert [(r["slide_id"], r["label"], r["patient_id"], r["split"]) for r in rows] == [
        ("a", "bad", "1", "train"),
        ("b", "", "2", "test"),
        ("c", "bad", "3", "test"),
    ]
    assert {r["width"] for r in rows} == {""}, "another column of the same name means something else"


def test_truth_files_are_the_masks_and_whatever_else_is_hidden(small: Path) -> None:
    names = [p.relative_to(small / "data").as_posix() for p in read(small).truth_files(small / "made")]
    assert names == ["masks/a.png", "masks/b.png", "masks/c.png", "more/a.png"]


def test_commands_get_patients_and_what_draw_says(small: Path) -> None:
    (small / "small.yaml").write_text(
        (small / "small.yaml").read_text()
        + "\nmake: ['{python} x {made} {n} {train} {test} {fold} {data}']\ndraw: {n: 40}\n"
    )
    data = read(small, "full")
    assert data.commands(data.folds[0], Path("made"))[0][1:] == [
        "x",
        "made",
        "40",
        "2,3",
        "1",
        "1",
        str(small / "data"),
    ]


def test_the_training_patients_are_all_others_even_if_one_fold_is_run(small: Path) -> None:
    (small / "small.yaml").write_text((small / "small.yaml").read_text() + "\nmake: ['x {train}']\n")
    data = read(small)
    assert data.commands(data.folds[0], Path("made")) == [["x", "2,3"]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"budget": "huge"}, "no budget 'huge'; there are quick, full, brief"),
        ({"methods": ["irnet"]}, "no method irnet; there are cam, other"),
        ({"folds": [3]}, "no such fold; there are 1..2"),
    ],
)
def test_what_is_not_there_is_named(small: Path, change: dict[str, object], text: str) -> None:
    with pytest.raises(Wrong, match=text):
        read(small, **change)


def test_an_unknown_key_is_refused(small: Path) -> None:
    (small / "small.yaml").write_text((small / "small.yaml").read_text() + "\nslide: x\n")
    with pytest.raises(Wrong, match="unknown keys slide"):
        read(small)


def test_a_missing_file_names_those_that_there_are(small: Path) -> None:
    with pytest.raises(Wrong, match="there are small"):
        read_dataset(small / "none.yaml", small, "quick")


def test_no_slides_is_an_error(small: Path) -> None:
    data = read_dataset(small / "small.yaml", small / "nowhere", "quick")
    with pytest.raises(Wrong, match="no slides at"):
        data.slides(small)


def test_merging_goes_into_mappings_and_leaves_the_base_alone() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merged(base, {"a": {"b": 5}, "d": [2]}) == {"a": {"b": 5, "c": 2}, "d": [2]}
    assert base["a"]["b"] == 1


@pytest.mark.parametrize("name", ["glas", "mosaic", "cohort", "ebhi"])
@pytest.mark.parametrize("budget", ["quick", "full"])
def test_the_data_sets_that_come_with_it_can_be_read_and_ask_for_parameters_that_there_are(
    name: str, budget: str
) -> None:
    from wsipipe.config.options import SECTIONS
    from wsipipe.config.yaml import build
    from wsipipe.pseudolabel.registry import load_method

    data = read_dataset(OWN / f"{name}.yaml", Path("data"), budget)
    for section, values in data.sections.items():
        built = build(SECTIONS[section], values, section)
        assert {key: getattr(built, key) for key in values} == values
    patch_px = data.sections["tile"].get("patch_px", 256)
    for arm in data.arms:
        build(SECTIONS["pseudolabel"], arm.options, "pseudolabel")
        method = load_method(arm.method)
        instance_grid = method.instance_grid(patch_px, build(method.Params, arm.params, arm.method))
        assert patch_px % instance_grid.instance_px == 0
