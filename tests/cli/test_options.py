"""Options: flags, pipeline.yaml and help."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import typing
from pathlib import Path

import click
import pytest
from rich.console import Console
from support.tiny_chain import BIN, assert_refused, wsipipe

from wsipipe.cli import main
from wsipipe.cli.group import COMMANDS
from wsipipe.cli.help import Option
from wsipipe.cli.options import settings_of
from wsipipe.cli.progress import bars
from wsipipe.config.options import SECTIONS
from wsipipe.errors import ConfigError

ALL = [name for section in COMMANDS.values() for name in section]
TAKEN_BY = {
    "stores": ("tile", "pretrain", "pseudolabel", "segment", "evaluate", "compare", "export", "run", "verify"),
    "runs": ("tile", "pretrain", "pseudolabel", "segment", "evaluate", "compare", "export", "run", "verify"),
    "max_failed": ("tile", "pretrain", "pseudolabel", "segment", "evaluate", "compare", "export", "run", "verify"),
    "device": ("pretrain", "pseudolabel", "segment", "run"),
    "seed": ("pretrain", "pseudolabel", "segment", "evaluate", "compare", "run"),
    "workers": ("tile", "segment", "run", "verify"),
    "dask": ("tile", "run"),
}
"""Option of section run -> the commands that use it."""


def command_of(*names: str) -> click.Command:
    """A command by its name, or by those of its group and itself."""
    command: click.Command = main
    for name in names:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


FIELDS = [
    (section, field.name)
    for section, config in SECTIONS.items()
    for field in dataclasses.fields(config)
    if (section, field.name) != ("run", "slides")  # the arguments of `wsipipe run`
]
WORDS = {
    "codec": "zstd",
    "glass": "scored",
    "max_failed": "3%",
    "device": "cpu",
    "method": "cam",
    "pretrain.method": "byol",
    "pseudolabel.refine": "none",
    "segment.labels": "word.csv",
    "evaluate.labels": "word.csv",
}
NUMBERS = {"segment.max_zoom": 1.5, "segment.validation": 0.3, "stitch.views": 4}


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_option_is_a_flag_that_reaches_its_stage(empty: Path, section: str, name: str):
    config = SECTIONS[section]
    kind, default = typing.get_type_hints(config)[name], getattr(config(), name)
    for command in TAKEN_BY[name] if section == "run" else ["segment" if section == "stitch" else section]:
        option = next(p for p in command_of(command).params if p.name == f"{section}__{name}")
        assert isinstance(option, Option)
        assert option.help
        assert option.group == SECTIONS[section].__dataclass_fields__[name].metadata["group"] != ""
        flag = option.opts[0]
        if kind is bool:
            arguments, expected = [f"--no-{flag[2:]}" if default else flag], not default
        elif kind in (int, float):
            value = NUMBERS.get(f"{section}.{name}", default // 2 + 33 if kind is int else 0.7)
            arguments, expected = [flag, str(value)], value
        elif typing.get_origin(kind) is tuple:
            arguments, expected = [flag, "a", flag, "b"], ("a", "b")
        else:
            expected = WORDS.get(f"{section}.{name}", WORDS.get(name, "word"))
            arguments = [flag, expected]
        with command_of(command).make_context(command, ["x", *arguments]) as context:
            settings = settings_of(context.params)
        assert getattr(getattr(settings, section), name) == expected
        assert expected != default


def test_the_config_file_is_read_from_where_it_is_said(empty: Path):
    (empty / "pipeline.yaml").write_text("tile: {patch_px: 64}\n")
    (empty / "other.yaml").write_text("tile: {patch_px: 96, quality: 50}\n")
    for arguments, patch, quality in (
        ([], 64, 90),
        (["--patch", "32"], 32, 90),
        (["--config", "other.yaml"], 96, 50),
        (["--config", "other.yaml", "--patch", "32"], 32, 50),
    ):
        with command_of("tile").make_context("tile", ["x", *arguments]) as context:
            tile = settings_of(context.params).tile
        assert (tile.patch_px, tile.quality) == (patch, quality)
    assert_refused(wsipipe("tile", "x.svs", "--config", "none.yaml"), 2, "none.yaml: cannot be read")


@pytest.mark.parametrize("command", ALL)
def test_every_command_has_help(command: str):
    result = wsipipe(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {command}")
    assert len(command_of(command).help or "") > 10


def test_defaults_are_shown_in_the_help():
    text = wsipipe("tile", "--help").stdout
    assert "[default: 0.5]" in text
    assert "[default: 256]" in text
    assert "--patch PX" in text


@pytest.mark.parametrize("arguments", [["--help"], ["tile", "--help"], ["pseudolabel", "--help"], ["--version"]])
def test_help_loads_no_giant(arguments: list[str]):
    code = (
        "import sys\nfrom wsipipe.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert e.code == 0\n"
        "print(*[g for g in ('torch', 'zarr', 'skimage', 'scipy', 'openslide') if g in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.split() == []


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["tile", "none.svs"], 2), (["info", "none"], 1)])
def test_the_installed_command_ends_with_the_same_codes(empty: Path, arguments: list[str], code: int):
    done = subprocess.run([BIN, *arguments], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (code == 0)
    assert len(done.stderr.splitlines()) == (code != 0)


def test_settings_take_no_unknown_flag_section():
    with pytest.raises(ConfigError, match="unknown key"):
        settings_of({"tile__nonsense": 3, "config": None})


def test_bars_of_single_slides_vanish_and_a_second_round_gets_a_new_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with bars(console) as progress:
        for slide in ("a", "b", "c"):
            progress("tile", "abc".index(slide), 3, slide)
            for done in range(3):
                progress(f"tile {slide}", done, 2)
        for _ in range(2):
            for done in (1, 2):
                progress("select", done, 2, "loss 0.1")
        progress("tile", 3, 3)
    last = console.file.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "tile a" not in last
    assert "3/3" in console.file.getvalue()
