"""RunContext: folders, the tolerance of its ledgers, and the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsipipe.config.options import RunConfig
from wsipipe.errors import ConfigError
from wsipipe.runtime.context import RunContext


def test_folders_ledger_and_device_are_those_of_the_options() -> None:
    seen: list[tuple[str, int, int, str]] = []
    context = RunContext(RunConfig(stores="s", runs="r", max_failed="2", seed=7, device="cpu"))
    context = context.with_progress(lambda *step: seen.append(step))
    assert (context.stores, context.runs, context.report().max_failed) == (Path("s"), Path("r"), "2")
    compute = context.compute()
    assert (compute.device.type, compute.seed) == ("cpu", 7)
    compute.progress("a", 1, 2, "")
    assert seen == [("a", 1, 2, "")]
    assert not context.overwrite


def test_an_unknown_device_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="device 'gpu'"):
        RunContext(RunConfig(device="gpu")).compute()
