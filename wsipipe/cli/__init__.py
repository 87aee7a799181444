"""The command line: options from the configuration, paths on stdout, progress and log on stderr, exit codes."""

from wsipipe.cli.group import main

__all__ = ["main"]
