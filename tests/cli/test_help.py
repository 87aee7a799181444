"""Help pages: they fit the terminal, stand in the order of work, and hide nothing."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner
from support.tiny_chain import wsipipe

from wsipipe.cli import commands, main
from wsipipe.cli.group import COMMANDS
from wsipipe.cli.help import FIRST, LAST, OUTPUT

PAGES = [[], *([name] for section in COMMANDS.values() for name in section), ["masks", "import"]]


def page(arguments: list[str], columns: int = 80) -> str:
    """The help page of a command on a terminal of so many columns."""
    result = CliRunner().invoke(main, [*arguments, "--help"], terminal_width=columns, prog_name="wsipipe")
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("columns", [50, 80, 200])
@pytest.mark.parametrize("arguments", PAGES, ids=" ".join)
def test_every_page_fits_the_terminal_and_breaks_no_word(arguments: list[str], columns: int):
    text = page(arguments, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert set(text) <= set(map(chr, range(32, 127))) | {"\n"}, "no control characters, no hard spaces"
    wide = page(arguments, 2000)
    assert text.split() == wide.split(), "the same words at every width"


def test_the_first_page_names_every_command_once_in_the_order_of_work():
    text = page([])
    listed = re.findall(r"^  (\w+)  +[A-Z]", text.partition("\nChain:")[2], re.MULTILINE)
    chain, rest = ["tile", "pretrain", "pseudolabel", "segment", "run"], ["evaluate", "compare", "export", "info"]
    assert listed == [*chain, *rest, "masks", "config", "verify", "demo"]
    assert "  wsipipe pseudolabel --labels labels.csv\n" in text
    assert "..." not in text.partition("Commands")[2]


def test_the_table_of_commands_is_complete():
    of_module = {n for n, c in vars(commands).items() if isinstance(c, click.Command)} - {"import_"}
    assert of_module == {name for section in COMMANDS.values() for name in section}
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name


@pytest.mark.parametrize("arguments", [a for a in PAGES if a and a != ["masks"]], ids=" ".join)
def test_headings_stand_in_order_and_every_option_is_under_one(arguments: list[str]):
    text = page(arguments)
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert headings
    if len(headings) > 1:
        assert headings[-1] == LAST
        assert headings.index(FIRST) == 0 if FIRST in headings else True
        assert headings[-2] == OUTPUT if OUTPUT in headings else True
    assert "--help" in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["tile"], "--mpp UM/PX "),
        (["tile"], "--patch PX "),
        (["tile"], "[default: 0.25]"),
        (["tile"], "--[no-]qc "),
        (["tile"], "--codec jpeg|zstd "),
        (["pseudolabel"], "--method cam|camel|drs|histosegnet|irnet|all\n"),
        (["pseudolabel"], "[default: the method's own]"),
        (["pseudolabel"], "[may be repeated;"),
        (["export"], "level of the mask; 0 is exact"),
        (["masks", "import"], "[required]"),
    ],
)
def test_units_choices_and_defaults_are_shown(arguments: list[str], shown: str):
    assert shown in page(arguments)


@pytest.mark.parametrize("command", ["evaluate", "compare", "verify", "config", "info", "demo"])
def test_a_command_that_replaces_nothing_takes_no_overwrite(command: str):
    assert "--overwrite" not in page([command])
    assert wsipipe(command, "--overwrite").exit_code == 2


def test_a_mistyped_command_is_told_the_nearest_one():
    result = wsipipe("tlie")
    assert result.exit_code == 2
    assert "No such command 'tlie'. Did you mean 'tile'?" in result.stderr
