"""The command `wsipipe`: names its commands in the order of work, and loads one when it is asked for."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

import wsipipe
from wsipipe.errors import ConfigError, WsipipeError

COMMANDS = {
    "Chain": {
        "tile": "Turn slides into patch stores.",
        "pretrain": "Pretrain an encoder on the patches, without labels.",
        "pseudolabel": "Turn weak labels into patch-level masks.",
        "segment": "Train a network on masks; map whole slides.",
        "run": "Run the chain: tile, pseudolabel, segment.",
    },
    "Look and measure": {
        "evaluate": "Score maps against the truth.",
        "compare": "Show several masks or maps side by side.",
        "export": "Write maps for QuPath, DICOM and other viewers.",
        "info": "Summarise a store.",
    },
    "House-keeping": {
        "masks": "Import your own masks and annotations.",
        "config": "Print pipeline.yaml with every option.",
        "verify": "Find damaged files in stores.",
        "demo": "Try the chain on a small synthetic cohort.",
    },
}
"""Heading -> command -> its line in `wsipipe --help`."""

RENAMED = {"labels": "masks import"}
"""Old name of a command -> its name now."""


class CommandGroup(click.Group):
    """The commands of `COMMANDS`, each imported on demand; expected errors end as one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of work."""
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Import a command; UsageError for a name that is not known."""
        if cmd_name in RENAMED:
            raise ConfigError(f"'wsipipe {cmd_name}' was renamed; use 'wsipipe {RENAMED[cmd_name]}'")
        known = self.list_commands(ctx)
        if cmd_name not in known:
            from difflib import get_close_matches

            near = get_close_matches(cmd_name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {cmd_name!r}.{hint}", ctx)
        from wsipipe.cli import commands

        command: click.Command = getattr(commands, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section per heading; no command is imported for it."""
        for heading, section in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(list(section.items()))

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


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(wsipipe.__version__, prog_name="wsipipe")
def main() -> None:
    """Weak labels on whole-slide images in, pixel maps out.

    \b
    # slides -> patch stores
    wsipipe tile slides/*.svs
    # weak labels -> patch-level masks
    wsipipe pseudolabel --labels labels.csv
    # masks -> trained network -> slide maps
    wsipipe segment --stitch

    Every option can also be set in ./pipeline.yaml; a flag overrides the file. Paths of results go to stdout,
    everything else to stderr.

    Exit codes: 0 done, 1 something failed, 2 wrong usage, configuration or labels.
    """  # noqa: D301 - \b keeps the lines below it as they are
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # waiting threads sleep: on a shared machine a spinning one slows all others down (a factor of 20 was measured)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
