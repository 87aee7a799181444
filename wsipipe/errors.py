"""Everything that may go wrong on purpose, with the exit code each kind deserves.

WsipipeError                 1
├── ConfigError              2   usage, pipeline.yaml
│   └── LabelsError          2   labels.csv
├── SlideError               1   a slide that cannot be opened or read
├── StoreError               1   a store that is missing, foreign, damaged or in the way
└── CheckpointError          1   weights that are missing or do not fit
"""

from __future__ import annotations

from collections.abc import Sequence


class WsipipeError(Exception):
    """Base of all expected failures; the message says what was found, what was expected and what to do."""

    exit_code = 1


class ConfigError(WsipipeError, ValueError):
    """Bad usage or configuration; nothing has been started."""

    exit_code = 2


class LabelsError(ConfigError):
    """labels.csv contradicts itself, the classes or the stores; lists every problem at once."""

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        shown = list(problems[:20]) + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        super().__init__(f"{path}: {'; '.join(shown)}")


class SlideError(WsipipeError, OSError):
    """A slide cannot be opened, has no resolution, or its pixels cannot be decoded."""


class StoreError(WsipipeError):
    """A store is missing, of another kind, damaged, or holds something else under the asked name."""


class CheckpointError(WsipipeError):
    """A checkpoint is missing, damaged, or made for other data."""


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)
