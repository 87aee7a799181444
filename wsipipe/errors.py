"""Expected failures and their exit codes.

WsipipeError                 1
├── ConfigError              2   usage or pipeline.yaml
│   └── LabelsError          2   labels.csv
├── SlideError               1   a slide that cannot be opened or read
├── StoreError               1   a store that is missing, damaged or made from other inputs
└── CheckpointError          1   weights that are missing, damaged or do not fit
"""

from __future__ import annotations

from collections.abc import Sequence


class WsipipeError(Exception):
    """Base of all expected failures; the message says what was found, what was expected and what to do next."""

    exit_code = 1


class ConfigError(WsipipeError, ValueError):
    """Wrong usage or configuration; no work has started."""

    exit_code = 2


class LabelsError(ConfigError):
    """labels.csv contradicts itself, the classes or the stores; the message lists every problem."""

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        shown = list(problems[:20]) + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        super().__init__(f"{path}: {'; '.join(shown)}")


class SlideError(WsipipeError, OSError):
    """A slide cannot be opened, does not contain its resolution, or has pixels that cannot be decoded."""


class StoreError(WsipipeError):
    """A store is missing, of another kind, damaged, or contains a result of other inputs under the given name."""


class CheckpointError(WsipipeError):
    """A checkpoint is missing, damaged, or trained for other data."""


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


def other_inputs(result: object, choose: str = "--name") -> str:
    """The message for an existing result of other inputs; option `choose` puts the new one elsewhere."""
    elsewhere = f"choose another {choose}, or " if choose else ""
    return f"{result} was made from other inputs; {elsewhere}replace it with --overwrite"
