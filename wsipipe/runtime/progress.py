"""The progress callback of long work; only the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a named task."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `task` are done; `note` is shown beside the bar."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Ignore the progress."""
