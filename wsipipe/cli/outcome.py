"""What a command says: log and progress on stderr, paths on stdout, errors as one line, exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from wsipipe.cli.progress import bars, lines
from wsipipe.errors import WsipipeError
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress

log = logging.getLogger("wsipipe")


class Commands(click.Group):
    """A group whose commands end expected errors as one line and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except WsipipeError as error:
            click.echo(f"wsipipe: error: {' '.join(str(error).split())}", err=True)
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("wsipipe: interrupted; run the same command again to continue", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(0)
        except OSError as error:
            click.echo(f"wsipipe: error: {error}", err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a user needs them."""
        return list(self.commands)


def finish(report: Report, made: list[Path]) -> None:
    """Paths on stdout, failures on stderr, and the exit code."""
    for path in made:
        click.echo(path)
    failed = report.of("failed")
    if failed:
        count = f"{len(failed)} of {len(report.rows)} failed (allowed: {report.max_failed})"
        names = ", ".join(row["item"] for row in failed)
        click.echo(f"wsipipe: {count}: {names}; the reasons are above and in {report.ledger}", err=True)
    sys.exit(report.exit_code)


@contextmanager
def reporting(quiet: bool) -> Iterator[Progress]:
    """Log to stderr, and progress as bars on a terminal or as a line now and then elsewhere.

    Of the processes of torchrun only the first says more than warnings.
    """
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    root = logging.getLogger("wsipipe")
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, show_level=True, markup=False)
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
