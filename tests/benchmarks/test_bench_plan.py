"""The plan of a fold: who runs where, what sees truth, and the table that comes of the judgements."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from benchmarks.quality.methods_bench.dataset import read_dataset
from benchmarks.quality.methods_bench.guard import Guard
from benchmarks.quality.methods_bench.page import rows_of, section
from benchmarks.quality.methods_bench.plan import Place, Plan
from benchmarks.quality.methods_bench.steps import Records, Step


def plan_of(small: Path, budget: str = "quick") -> Plan:
    data = read_dataset(small / "small.yaml", small / "data", budget)
    plan = Plan(data, data.folds[0], Place(small / "work"), "cpu")
    plan.lay_out()
    return plan


def every(plan: Plan) -> list[Step]:
    return [*plan.make(), *plan.weak(), *plan.supervised(), *plan.judge()]


def test_the_fold_is_laid_out_without_truth(small: Path) -> None:
    plan = plan_of(small)
    weak = plan.place.weak
    assert sorted(p.name for p in (weak / "slides").iterdir()) == ["a.png", "b.png", "c.png"]
    with (weak / "labels.csv").open() as f:
        assert {r["slide_id"]: r["split"] for r in csv.DictReader(f)} == {"a": "test", "b": "train", "c": "train"}
    options = yaml.safe_load((weak / "other.yaml").read_text())["pseudolabel"]
    assert options["method"] == "camel"
    assert options["camel"] == {"lattice": 8}
    assert options["encoder"] == "resnet18_half"
    assert options["self_train"] is False
    assert yaml.safe_load((weak / "segment.yaml").read_text()) == {"segment": {"steps": 5}}


def test_laying_out_again_drops_slides_that_are_gone(small: Path) -> None:
    plan = plan_of(small)
    (small / "data" / "images" / "c.png").unlink()
    plan.lay_out()
    assert sorted(p.name for p in (plan.place.weak / "slides").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("budget", ["quick", "full"])
def test_weak_steps_pass_the_guard_and_names_are_their_own(small: Path, budget: str) -> None:
    plan = plan_of(small, budget)
    guard = Guard(plan.data.truth_files(plan.place.made))
    steps = every(plan)
    assert len({s.name for s in steps}) == len(steps)
    for step in steps:
        truth = any(str(small / "data" / "masks") in word for word in step.argv)
        if step.track == "weak":
            guard.check(step.argv, step.cwd)
            assert step.cwd == plan.place.weak
        else:
            assert truth or step.cwd != plan.place.weak or step.track == "judge"
    assert {s.track for s in steps} == {"weak", "supervised", "judge"}


def test_every_step_needs_only_steps_before_it(small: Path) -> None:
    seen: set[str] = set()
    for step in every(plan_of(small, "full")):
        assert set(step.needs) <= seen, step.name
        seen.add(step.name)


def test_one_pretrained_encoder_serves_all_methods_but_those_that_want_none(small: Path) -> None:
    text = (small / "small.yaml").read_text().replace("self_train: false", "pretrain: false")
    (small / "small.yaml").write_text(text)
    steps = {s.name: s for s in plan_of(small, "full").weak()}
    assert "runs/encoder-s1" in steps["small/fold1/cam-s1/fit"].argv
    assert "small/fold1/encoder-s1" in steps["small/fold1/cam-s1/fit"].needs
    assert "--weights" not in steps["small/fold1/other-s1/fit"].argv


def test_network_budget_and_start_of_the_bound_are_those_of_the_last_method(small: Path) -> None:
    plan = plan_of(small)
    trained = {s.name: s.argv for s in every(plan) if s.name.endswith("/train")}
    weak, bound = (trained[f"small/fold1/{n}/train"] for n in ("other-s0-segmenter", "supervised-s0"))
    differ = [(a, b) for a, b in zip(weak, bound, strict=False) if a != b]
    assert differ == [("other-s0", "truth"), ("other-s0-segmenter", "supervised-s0")]
    assert bound[len(weak) :] == ("--weights", str(plan.place.weak / "runs" / "other-s0"))
    assert (plan.place.weak / "segment.yaml").read_bytes() == (plan.place.supervised / "segment.yaml").read_bytes()


def test_only_test_slides_are_mapped(small: Path) -> None:
    plan = plan_of(small)
    maps = [s for s in every(plan) if s.name.endswith("/map")]
    assert maps
    for step in maps:
        assert [w for w in step.argv if w.endswith(".zarr")] == ["stores/a.zarr"]


def judged(plan: Plan, split: str, labels: str, confusion: list[list[int]]) -> None:
    """As if the product had judged `labels`, and a record of it."""
    folder = plan.place.judged / split / labels
    folder.mkdir(parents=True)
    trivial = {"empty": [[60, 0], [40, 0]], "all tissue is bad": [[20, 40], [0, 40]]}
    trivial["all tissue of slides with bad"] = [[40, 20], [0, 40]]
    answers = {n: {"confusion": c, "intervals": {}} for n, c in {labels: confusion, **trivial}.items()}
    data = {"classes": ["bad"], "answer_names": list(answers), "answers": answers, "slide_auc": {"bad": 0.9}}
    (folder / "evaluate.json").write_text(json.dumps(data))
    records = Records(plan.place.records)
    records.folder.mkdir(exist_ok=True)
    records.path(plan.name("judge", split, labels)).write_text(json.dumps({"key": "x"}))


def test_rows_pool_compare_with_the_bound_and_count_the_cost(small: Path) -> None:
    plan = plan_of(small)
    judged(plan, "test", "cam-s0", [[60, 0], [20, 20]])
    judged(plan, "test", "supervised-s0", [[60, 0], [10, 30]])  # Dice 0.857, above the trivial 0.8
    records = Records(plan.place.records)
    for name, cost in (("cam-s0/fit", (60, 500)), ("encoder-s0", (30, 700)), ("cam-s0-segmenter/train", (600, 900))):
        path = records.path(plan.name(*name.split("/")))
        path.write_text(json.dumps({"seconds": cost[0], "peak_mib": cost[1]}))
    rows = {(r.answer, r.split): r for r in rows_of(plan.data, [plan])}
    assert list(rows)[-1][0].startswith("supervised")
    row = rows["cam: pseudo-masks", "test"]
    assert row.seeds[0]["dice"] == pytest.approx(2 / 3)
    assert row.ratios == [pytest.approx((2 / 3) / (6 / 7))]
    assert row.minutes == 1.5
    assert row.peak_mib == 700
    assert rows["all tissue", "test"].seeds[0]["dice"] == pytest.approx(80 / 120)
    assert rows["label copied to all tissue", "test"].seeds[0]["dice"] == pytest.approx(0.8)
    assert rows["empty mask", "test"].seeds[0]["miou"] == pytest.approx(0.3)
    assert not rows["cam: segmenter", "test"].seeds
    assert ("empty mask", "train") not in rows
    text = "\n".join(section(plan.data, [plan]))
    assert "| cam: pseudo-masks | test | 0.667 |" in text
    assert "| cam: segmenter | test | not run" in text


def test_a_bound_that_has_learnt_nothing_gives_no_ratio_and_says_so(small: Path) -> None:
    plan = plan_of(small)
    judged(plan, "test", "cam-s0", [[60, 0], [20, 20]])
    judged(plan, "test", "supervised-s0", [[60, 0], [39, 1]])
    rows = {(r.answer, r.split): r for r in rows_of(plan.data, [plan])}
    assert rows["cam: pseudo-masks", "test"].ratios == []
    assert "trained too briefly to be a bound" in "\n".join(section(plan.data, [plan]))


def test_seeds_give_a_mean_and_a_spread_and_ratios_are_paired(small: Path) -> None:
    plan = plan_of(small, "full")
    for seed, hit in enumerate((30, 35)):
        judged(plan, "test", f"cam-s{seed}", [[60, 0], [40 - hit, hit]])
        judged(plan, "test", f"supervised-s{seed}", [[60, 0], [40 - hit, hit]])
    rows = {(r.answer, r.split): r for r in rows_of(plan.data, [plan])}
    assert rows["cam: pseudo-masks", "test"].ratios == [1, 1]
    text = "\n".join(section(plan.data, [plan]))
    assert "0.895 (0.857-0.933)" in text
    assert "2 seeds" in text
