"""The ledger of a stage: one row per item with its status, written to CSV; it also decides the exit code."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from wsipipe.errors import ConfigError, WsipipeError
from wsipipe.runtime.atomic import write_csv

log = logging.getLogger(__name__)


def read_ledger(path: Path) -> list[dict[str, str]]:
    """The rows that `Report.write` wrote; none if the file does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@dataclass
class Report:
    """The status of every item of a stage: rows of the ledger, a table for stderr and the exit code.

    max_failed: number (N) or percentage (P%) of items that may fail with exit code 0.
    """

    max_failed: str = "0"
    rows: list[dict[str, str]] = field(default_factory=list)
    ledger: Path | None = None

    def add(self, item: str, status: str, reason: str = "", **more: object) -> None:
        """Add the row of one item; `status` is done, added, skipped, empty or failed."""
        self.rows.append({"item": item, "status": status, "reason": reason, **{k: str(v) for k, v in more.items()}})

    def failed(self, item: str, error: WsipipeError) -> None:
        """Add the row of a failed item, with the error as its one-line reason."""
        self.add(item, "failed", " ".join(str(error).split()))

    @contextmanager
    def guard(self, item: str) -> Iterator[None]:
        """Log and record an expected failure of one item, so that the other items continue.

        A ConfigError concerns all items and is raised.
        """
        try:
            yield
        except ConfigError:
            raise
        except WsipipeError as error:
            log.error("%s: failed: %s", item, error)
            self.failed(item, error)

    def merge(self, later: Report) -> None:
        """Merge the rows of a later stage: one row per item; a failure in any stage wins."""
        rows = {row["item"]: row for row in self.rows}
        for row in later.rows:
            if row["item"] not in rows or row["status"] == "failed":
                rows[row["item"]] = row
        self.rows = list(rows.values())
        self.ledger = later.ledger or self.ledger

    def of(self, status: str) -> list[dict[str, str]]:
        """The rows with this status."""
        return [r for r in self.rows if r["status"] == status]

    @property
    def exit_code(self) -> int:
        """0 if at most `max_failed` items failed, otherwise 1."""
        failed = len(self.of("failed"))
        number = int(self.max_failed.removesuffix("%"))
        allowed = number * len(self.rows) / 100 if self.max_failed.endswith("%") else number
        return int(failed > allowed)

    def table(self, columns: Sequence[str], most: int = 40) -> str:
        """An aligned table: item, status, `columns` and reason; with more than `most` rows, only those not done."""
        open_rows = [r for r in self.rows if r["status"] not in ("done", "skipped", "added")]
        shown = self.rows if len(self.rows) <= most else open_rows
        keys = [k for k in ("item", "status", *columns, "reason") if any(r.get(k) for r in shown)] or ["item", "status"]
        cells = [("slide", *keys[1:]), *([r.get(k, "") for k in keys] for r in shown)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(keys) - 1)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in cells
        ]
        counts = Counter(r["status"] for r in self.rows)
        return "\n".join([*lines, ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))])

    def write(self, path: Path) -> None:
        """Write the rows to a CSV ledger; rows of earlier runs stay unless this run has a row for the same item."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):  # several processes may share the items
            rows = {r["item"]: r for r in [*read_ledger(path), *self.rows]}.values()
            columns = list(dict.fromkeys(k for r in rows for k in r)) or ["item", "status", "reason"]
            write_csv(path, columns, rows)
        self.ledger = path
