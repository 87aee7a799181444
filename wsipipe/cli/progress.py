"""How the command line shows progress: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsipipe.runtime.progress import Progress

_NARROW, _WIDE = 72, 100


@contextmanager
def bars(console: Any) -> Iterator[Progress]:
    """Progress as bars on `console`, a terminal (rich.console.Console)."""
    from rich.progress import Progress as Bars

    with Bars(*_columns(console.width), console=console) as drawn:
        tasks: dict[str, Any] = {}
        so_far: dict[str, int] = {}

        def show(task: str, done: int, total: int, note: str = "") -> None:
            if task not in tasks or done < so_far[task]:  # a task that starts again gets a new bar
                tasks[task] = drawn.add_task(task, total=total, note=note)
            so_far[task] = done
            drawn.update(tasks[task], completed=done, total=total, note=note)
            if done >= total and " " in task:  # the bar of one slide goes when it is done: there may be thousands
                drawn.remove_task(tasks.pop(task))

        yield show


def _columns(width: int) -> list[Any]:
    """Task, bar, count, times and note; a narrow terminal drops the elapsed time, then the bar and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    def column(least: int, most: int | None = None) -> Column:
        return Column(no_wrap=True, overflow="ellipsis", min_width=least, max_width=most)

    task = TextColumn("{task.description}", table_column=column(12, 24))
    count = MofNCompleteColumn(table_column=column(9))
    left = TimeRemainingColumn(table_column=column(7))
    note = TextColumn("{task.fields[note]}", table_column=column(8))
    if width < _NARROW:
        return [task, count, note]
    if width < _WIDE:
        return [task, BarColumn(10, table_column=column(10)), count, left, note]
    return [task, BarColumn(20, table_column=column(10)), count, TimeElapsedColumn(table_column=column(7)), left, note]


def lines(log: logging.Logger, every_s: float = 30.0) -> Progress:
    """Progress as log lines: the start and end of each task, and one line per `every_s` seconds between."""
    last: dict[str, float] = {}

    def show(task: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done == total or now - last.get(task, -1e9) >= every_s:
            last[task] = now
            log.info("%s %d/%d %s", task, done, total, note)

    return show
