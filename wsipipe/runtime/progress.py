"""The progress callback that long work reports to; only the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far a named piece of long work has come; only the command line draws it."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `task` are done; `note` is what a person wants to see beside it."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Progress that nobody watches."""
