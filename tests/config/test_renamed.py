"""Old names of options: in pipeline.yaml, as flags, and as names of masks where a CSV belongs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.tiny_chain import assert_refused, wsipipe

from wsipipe.cli.flags import flag_of, new_flag
from wsipipe.config.options import SECTIONS
from wsipipe.config.renamed import RENAMED, RENAMED_PARAMETERS, REUSED, check_key, check_reused
from wsipipe.config.yaml import build
from wsipipe.errors import ConfigError
from wsipipe.pipeline import read_settings
from wsipipe.pseudolabel.registry import load_method

OPTIONS = {f"{section}.{f.name}" for section, config in SECTIONS.items() for f in dataclasses.fields(config)}


def test_new_names_are_options_and_old_ones_are_not() -> None:
    assert set(RENAMED.values()) | set(REUSED) | set(REUSED.values()) <= OPTIONS
    assert not set(RENAMED) & OPTIONS


@pytest.mark.parametrize(("old", "new"), RENAMED_PARAMETERS.items())
def test_an_old_parameter_of_a_method_names_the_new_one(old: str, new: str):
    _, method, name = old.split(".")
    params = load_method(method).Params
    assert new.rpartition(".")[2] in {f.name for f in dataclasses.fields(params)}
    with pytest.raises(ConfigError) as caught:
        build(params, {name: 1}, f"pseudolabel.{method}")
    assert str(caught.value) == f"{old} was renamed; use {new}"


def argument(section: str) -> list[str]:
    """What the command of a section needs beside options."""
    return ["x.svs"] if section == "tile" else []


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_in_the_file_names_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    section, _, name = old.partition(".")
    (tmp_path / "p.yaml").write_text(f"{section}: {{{name}: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "p.yaml", {})
    assert str(caught.value) == f"{tmp_path / 'p.yaml'}: {old} was renamed; use {new}"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_flag_names_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.chdir(tmp_path)
    section, name = old.split(".")
    flag, renamed = flag_of(name), flag_of(new.partition(".")[2])
    if flag == renamed:
        return  # moved to another section of pipeline.yaml
    assert_refused(wsipipe(section, *argument(section), flag, "1"), 2, f"{flag} was renamed; use {renamed}")


def test_the_negative_of_an_old_switch_names_the_new_one() -> None:
    assert new_flag("--even-stain", {"tile"}) == "--normalise-stain"
    assert new_flag("--no-even-stain", {"tile"}) == "--no-normalise-stain"
    assert new_flag("--even-stain", {"segment"}) is None
    assert new_flag("--anything", {"tile"}) is None


def test_old_commands_and_their_flags_name_the_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(wsipipe("labels", "import", "--masks", "m"), 2, "'wsipipe labels' was renamed; use 'wsipipe masks")
    assert_refused(wsipipe("masks", "import", "--masks", "m"), 2, "--masks was renamed; use --annotations")


def test_a_key_that_was_never_renamed_passes() -> None:
    check_key("tile.mpp")


@pytest.mark.parametrize("key", REUSED)
def test_a_name_of_masks_where_a_csv_belongs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    section, name = key.split(".")
    for value in ("camel", "camel,drs", "drs-crf"):
        with pytest.raises(
            ConfigError, match=f"{key}: '{value}' is no CSV file; the name of masks goes to {REUSED[key]}"
        ):
            check_reused(section, {name: value})
    (tmp_path / "labels").write_text("")
    for other in ("labels", "labels.csv", "other/labels", "", 3):
        check_reused(section, {name: other})
