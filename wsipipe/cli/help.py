"""Help pages: options under headings, laid out for wide and for narrow terminals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import click

from wsipipe.cli.flags import new_flag
from wsipipe.errors import ConfigError

FIRST, OUTPUT, LAST = "What goes in", "What comes out", "Run"
"""The heading that opens every page, and the two that close it; others stand in the order of the options."""

_WIDEST_TERM = 24
_WIDE_PAGE = 66
_SHORT_NOTE = 30


class Option(click.Option):
    """An option with the heading it stands under; a switch is shown as `--[no-]name`."""

    def __init__(self, *args: Any, group: str = LAST, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The term and its text."""
        record = super().get_help_record(ctx)
        if record is None or not self.secondary_opts:
            return record
        return f"--[no-]{self.opts[0].removeprefix('--')}", record[1]


class Command(click.Command):
    """A command whose help page shows the options under their headings; it knows the old names of its flags."""

    def __init__(
        self,
        *args: Any,
        renamed: Mapping[str, str] | None = None,
        lists: Mapping[str, Mapping[str, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        """`renamed`: old flag -> new flag, for flags that are no options of pipeline.yaml.

        `lists`: heading -> term -> text, sections of the help page besides the options.
        """
        super().__init__(*args, **kwargs)
        self.renamed = renamed or {}
        self.lists = lists or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; an old flag is a ConfigError that names the new one."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            sections = {str(p.name).partition("__")[0] for p in self.params}
            new = self.renamed.get(error.option_name) or new_flag(error.option_name, sections)
            if new is None:
                raise
            raise ConfigError(f"{error.option_name} was renamed; use {new}") from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section per heading, all with the same columns."""
        sections: dict[str, list[tuple[str, str]]] = {FIRST: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "group", LAST), []).append(record)
        sections |= {heading: list(entries.items()) for heading, entries in self.lists.items()}
        for heading in (OUTPUT, LAST):
            sections[heading] = sections.pop(heading, [])
        written = {heading: records for heading, records in sections.items() if records}
        terms = [len(term) for records in written.values() for term, _ in records]
        column = min(max(terms), _WIDEST_TERM) + 4 if formatter.width >= _WIDE_PAGE else 0
        for heading, records in written.items():
            with formatter.section(heading if len(written) > 1 else "Options"):
                for term, text in records:
                    formatter.write(_entry(f"  {term}", text, column, formatter.width))


def _entry(term: str, text: str, column: int, width: int) -> str:
    """An option and its text: beside each other from `column` on, or below each other where that does not fit."""
    indent = " " * (column or 6)
    head, bracket, notes = text.rpartition("  [")
    if bracket and len(notes) <= _SHORT_NOTE:  # a short note is not broken
        text = f"{head}  [{notes.replace(' ', chr(0xA0))}"
    body = textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    ).replace(chr(0xA0), " ")
    if column and len(term) <= column - 2:
        return f"{term}{body[len(term) :]}\n"
    return f"{term}\n{body}\n"
