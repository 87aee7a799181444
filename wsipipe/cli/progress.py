"""How the command line shows progress: bars on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsipipe.runtime.progress import Progress


@contextmanager
def bars(console: Any) -> Iterator[Progress]:
    """Progress as bars on `console`, a terminal (rich.console.Console)."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as drawn:
        tasks: dict[str, Any] = {}
        so_far: dict[str, int] = {}

        def show(task: str, done: int, total: int, note: str = "") -> None:
            if task not in tasks or done < so_far[task]:  # a second round of the same task gets a bar of its own
                tasks[task] = drawn.add_task(task, total=total, note=note)
            so_far[task] = done
            drawn.update(tasks[task], completed=done, total=total, note=note)
            if done >= total and " " in task:  # the bar of one slide goes when it is done: there may be thousands
                drawn.remove_task(tasks.pop(task))

        yield show


def lines(log: logging.Logger, every_s: float = 30.0) -> Progress:
    """Progress as log lines: the start and end of each task, and one line every `every_s` seconds between."""
    last: dict[str, float] = {}

    def show(task: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done == total or now - last.get(task, -1e9) >= every_s:
            last[task] = now
            log.info("%s %d/%d %s", task, done, total, note)

    return show
