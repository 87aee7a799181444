"""What a command says: log and progress on stderr, paths on stdout, and the exit code."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsipipe.cli.progress import bars, lines
from wsipipe.runtime.progress import Progress

if TYPE_CHECKING:
    from wsipipe.pipeline import Settings
    from wsipipe.runtime.context import RunContext
    from wsipipe.runtime.ledger import Report

log = logging.getLogger("wsipipe")

_WIDE_COLUMNS = 72


def show(text: str, err: bool = False) -> None:
    """Print text for a person; a terminal gets lines that are broken at spaces where they are too long for it."""
    width = columns(err)
    click.echo("\n".join(fitted(line, width) for line in text.splitlines()) if width else text, err=err)


def columns(err: bool = False) -> int:
    """Width of the terminal; 0 if stdout (or stderr) is none."""
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else 0


def fitted(line: str, width: int) -> str:
    """A line broken at spaces to `width` columns; what follows is indented to the second column of the text, if any."""
    if len(line) <= width:
        return line
    column = re.match(r" *\S+ {2,}", line)
    indent = column.end() if column and column.end() <= width // 3 else len(line) - len(line.lstrip()) + 2
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        drop_whitespace=True,
        replace_whitespace=False,
        break_on_hyphens=False,
        break_long_words=False,
    )


def finish(report: Report, made: list[Path]) -> None:
    """Print paths on stdout and failures on stderr, and exit with the report's code."""
    for path in made:
        click.echo(path)
    failed = report.of("failed")
    if failed:
        count = f"{len(failed)} of {len(report.rows)} failed (allowed: {report.max_failed})"
        names = ", ".join(row["item"] for row in failed)
        click.echo(f"wsipipe: {count}: {names}; the reasons are above and in {report.ledger}", err=True)
    sys.exit(report.exit_code)


@contextmanager
def working(settings: Settings, call: Mapping[str, Any]) -> Iterator[RunContext]:
    """The context of a stage, from the settings and the flags of the command; its progress is shown."""
    with reporting(call["quiet"]) as progress:
        yield settings.context(progress, call.get("overwrite", False))


@contextmanager
def reporting(quiet: bool) -> Iterator[Progress]:
    """Log to stderr; show progress as bars on a terminal, elsewhere as a line now and then.

    Under torchrun only the first process logs more than warnings.
    """
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    root = logging.getLogger("wsipipe")
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    if console.is_terminal:
        wide = console.width >= _WIDE_COLUMNS
        handler: logging.Handler = RichHandler(console=console, show_path=False, show_time=wide, log_time_format="%X")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root.addHandler(handler)
    try:
        if quiet:
            yield lambda task, done, total, note="": None
        elif console.is_terminal:
            with bars(console) as progress:
                yield progress
        else:
            yield lines(log)
    finally:
        root.removeHandler(handler)
