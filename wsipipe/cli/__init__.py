"""The command line: options from the configuration, paths on stdout, progress and log on stderr, exit codes."""

from wsipipe.cli.commands import main
from wsipipe.cli.options import settings_of

__all__ = ["main", "settings_of"]
