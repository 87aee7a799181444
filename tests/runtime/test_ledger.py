"""The ledger: rows of items, the CSV on disk, the table for people, and the exit code."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from wsipipe.errors import ConfigError, SlideError
from wsipipe.runtime.ledger import Report, read_ledger


def report(max_failed: str, failed: int, total: int) -> Report:
    ledger = Report(max_failed)
    for i in range(total):
        ledger.add(f"s{i}", "failed" if i < failed else "done")
    return ledger


@pytest.mark.parametrize(
    ("max_failed", "failed", "total", "code"),
    [
        ("0", 0, 5, 0), ("0", 1, 5, 1), ("2", 2, 5, 0), ("2", 3, 5, 1),
        ("0%", 0, 5, 0), ("0%", 1, 5, 1), ("20%", 1, 5, 0), ("20%", 2, 5, 1), ("19%", 1, 5, 1), ("100%", 5, 5, 0),
        ("0", 0, 0, 0), ("5%", 0, 0, 0),
    ],
)  # fmt: skip
def test_exit_code_allows_a_number_or_a_share_of_failures(max_failed: str, failed: int, total: int, code: int) -> None:
    assert report(max_failed, failed, total).exit_code == code


def test_skipped_and_empty_items_are_no_failures() -> None:
    ledger = Report()
    ledger.add("a", "skipped")
    ledger.add("b", "empty", "no tissue")
    assert ledger.exit_code == 0
    assert [r["item"] for r in ledger.of("empty")] == ["b"]


def test_ledger_is_a_csv_of_all_items_and_columns(tmp_path: Path) -> None:
    ledger = Report()
    ledger.add("a", "done", patches=12, seconds="0.5")
    ledger.failed("b", SlideError("cannot,\n   be read"))
    path = tmp_path / "new" / "tile.csv"
    ledger.write(path)
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert rows == [
        {"item": "a", "status": "done", "reason": "", "patches": "12", "seconds": "0.5"},
        {"item": "b", "status": "failed", "reason": "cannot, be read", "patches": "", "seconds": ""},
    ]
    assert sorted(p.name for p in path.parent.iterdir()) == [".tile.csv.lock", "tile.csv"]


def test_an_empty_ledger_has_its_header(tmp_path: Path) -> None:
    Report().write(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().strip() == "item,status,reason"


def test_the_ledger_keeps_items_of_earlier_calls(tmp_path: Path) -> None:
    path = tmp_path / "tile.csv"
    first, second = Report(), Report()
    first.add("a", "failed", "gone")
    first.add("b", "done", patches=3)
    first.write(path)
    second.add("a", "done", copied="100%")
    second.write(path)
    assert read_ledger(path) == [
        {"item": "a", "status": "done", "reason": "", "patches": "", "copied": "100%"},
        {"item": "b", "status": "done", "reason": "", "patches": "3", "copied": ""},
    ]
    assert read_ledger(tmp_path / "none.csv") == []


def test_a_guarded_failure_costs_its_item_alone_and_a_configuration_error_all(caplog: pytest.LogCaptureFixture) -> None:
    report = Report()
    for item in ("a", "b", "c"):
        with report.guard(item):
            if item == "b":
                raise SlideError("b.svs: no pixels")
            report.add(item, "done")
    assert [(r["item"], r["status"]) for r in report.rows] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert "b: failed: b.svs: no pixels" in caplog.text
    with pytest.raises(ConfigError, match="wrong for all"), report.guard("d"):
        raise ConfigError("wrong for all")
    with pytest.raises(ZeroDivisionError), report.guard("e"):
        raise ZeroDivisionError
    assert len(report.rows) == 3


def test_table_aligns_columns_and_counts() -> None:
    ledger = Report()
    ledger.add("a", "done", patches=12, copied="100%")
    ledger.add("a longer name", "empty", "no tissue", patches=0)
    ledger.failed("b", SlideError("b.svs: gone"))
    head, *rows, counts = ledger.table(("patches", "copied")).splitlines()
    assert counts == "1 done, 1 empty, 1 failed"
    assert head.split() == ["slide", "status", "patches", "copied", "reason"]
    assert [r.split()[-1] for r in rows] == ["100%", "tissue", "gone"]
    for column in ("status", "patches", "copied"):
        at = head.index(column)
        assert all(row[at - 2 : at].strip() == "" for row in rows)
    assert rows[0][head.index("patches") :].startswith("12 ")
    assert rows[2][head.index("reason") :] == "b.svs: gone"
    assert all(line == line.rstrip() for line in (head, *rows))


def test_table_of_many_shows_those_that_are_not_done() -> None:
    ledger = report("0", 2, 100)
    lines = ledger.table(("patches",)).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["s0", "s1"]
    assert lines[-1] == "98 done, 2 failed"
    assert len(ledger.table((), most=100).splitlines()) == 102
    for status in ("done", "skipped", "added"):
        ledger.rows = [{"item": f"s{i}", "status": status, "reason": ""} for i in range(41)]
        assert [line.split()[0] for line in ledger.table(()).splitlines()] == ["slide", "41"]


def test_a_failure_in_any_merged_stage_wins() -> None:
    first, second = Report(), Report(ledger=Path("second.csv"))
    first.add("a", "done")
    first.failed("b", SlideError("torn"))
    second.failed("a", SlideError("late"))
    second.add("b", "done")
    second.add("c", "done")
    first.merge(second)
    assert [(r["item"], r["status"], r["reason"]) for r in first.rows] == [
        ("a", "failed", "late"),
        ("b", "failed", "torn"),
        ("c", "done", ""),
    ]
    assert first.ledger == Path("second.csv")
