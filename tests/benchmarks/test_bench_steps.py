"""Steps: what is run, what is run again, and what is recorded of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.methods_bench import steps as module
from benchmarks.quality.methods_bench.steps import Failed, Records, Step, run_all


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that notes its arguments in a file, or fails."""
    path = tmp_path / "note.py"
    path.write_text(
        "import sys\nif sys.argv[1] == 'fail':\n    print('it broke')\n    sys.exit(3)\n"
        "open('log', 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    )
    return path


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., list[str]]:
    """Run steps; the names of those that are left."""

    def call(
        steps: Sequence[Step], wanted: str = "", seconds: float = 60, before: Callable[[Step], None] | None = None
    ) -> Any:
        records = Records(tmp_path / "records")
        left = run_all(steps, records, lambda n: wanted in n, seconds, before or (lambda s: None), lambda text: None)
        return [s.name for s in left]

    return call


def step(script: Path, name: str, *words: str, needs: tuple[str, ...] = (), inputs: tuple[Path, ...] = ()) -> Step:
    return Step(name, "weak", (sys.executable, str(script), name, *words), script.parent / "cwd", needs, inputs)


def ran(script: Path) -> list[str]:
    log = script.parent / "cwd" / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_what_is_done_is_not_done_again_and_is_on_record(
    script: Path, go: Callable[..., list[str]], tmp_path: Path
) -> None:
    one = step(script, "set/one")
    assert go([one]) == go([one]) == []
    assert ran(script) == ["set/one"]
    record = Records(tmp_path / "records").read("set/one")
    assert record["track"] == "weak"
    assert record["seconds"] > 0
    assert record["peak_mib"] > 1
    assert record["command"].endswith("note.py set/one")


def test_a_changed_command_is_run_again_and_so_is_what_needs_it(script: Path, go: Callable[..., list[str]]) -> None:
    after = [step(script, "b", needs=("a",)), step(script, "c")]
    go([step(script, "a"), *after])
    go([step(script, "a", "changed"), *after])
    assert ran(script) == ["a", "b", "c", "a changed", "b"]


def test_a_changed_input_file_counts(script: Path, go: Callable[..., list[str]], tmp_path: Path) -> None:
    options = tmp_path / "options.yaml"
    one = step(script, "a", inputs=(options,))
    for text in ("x", "x", "y"):
        options.write_text(text)
        go([one])
    assert ran(script) == ["a", "a"]


def test_only_what_is_wanted_runs_and_nothing_that_waits_for_the_rest(
    script: Path, go: Callable[..., list[str]]
) -> None:
    steps = [step(script, "x1"), step(script, "y1", needs=("x1",)), step(script, "y2")]
    assert go(steps, "y") == ["x1", "y1"]
    assert ran(script) == ["y2"]
    assert go(steps[1:]) == ["y1"]  # of another call, what is needed was never run
    assert ran(script) == ["y2"]


def test_after_its_time_no_step_starts(script: Path, go: Callable[..., list[str]]) -> None:
    assert go([step(script, "a")], seconds=-1) == ["a"]
    assert ran(script) == []


def test_a_failed_step_ends_the_run_and_is_not_on_record(
    script: Path, go: Callable[..., list[str]], tmp_path: Path
) -> None:
    with pytest.raises(Failed, match="fail: exit code 3, it said: it broke"):
        go([step(script, "fail"), step(script, "a")])
    assert ran(script) == []
    assert not Records(tmp_path / "records").read("fail")


def test_a_refused_step_does_not_run(script: Path, go: Callable[..., list[str]]) -> None:
    def refuse(_: Step) -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        go([step(script, "a")], before=refuse)
    assert ran(script) == []


def test_a_command_of_the_product_replaces_what_it_made_of_other_inputs(
    script: Path, go: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WSIPIPE", (sys.executable, str(script)))
    go([step(script, "a")])
    go([step(script, "a", "more")])
    assert ran(script) == ["a", "a more --overwrite"]
