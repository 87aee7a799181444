"""The ledger of a stage: what became of each item, on disk and as the exit code."""

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
    """The rows of a ledger that `Report.write` wrote; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@dataclass
class Report:
    """What became of each item of a stage: the ledger on disk, the last lines on stderr and the exit code."""

    max_failed: str = "0"
    rows: list[dict[str, str]] = field(default_factory=list)
    ledger: Path | None = None

    def add(self, item: str, status: str, reason: str = "", **more: object) -> None:
        """Record one item; `status` is done, added, skipped, empty or failed."""
        self.rows.append({"item": item, "status": status, "reason": reason, **{k: str(v) for k, v in more.items()}})

    def failed(self, item: str, error: WsipipeError) -> None:
        """Record a failure with its one-line reason."""
        self.add(item, "failed", " ".join(str(error).split()))

    @contextmanager
    def guard(self, item: str) -> Iterator[None]:
        """Work on one item: an expected failure is logged and recorded and costs only this item.

        A ConfigError passes through, as it is wrong for all items alike.
        """
        try:
            yield
        except ConfigError:
            raise
        except WsipipeError as error:
            log.error("%s: failed: %s", item, error)
            self.failed(item, error)

    def take(self, later: Report) -> None:
        """Add what became of the items in a later step: each keeps one row, and what failed in any step has failed."""
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
        """0 if the failures are within `max_failed` (N, or P% of all items), else 1."""
        bad = len(self.of("failed"))
        number = int(self.max_failed.removesuffix("%"))
        allowed = number * len(self.rows) / 100 if self.max_failed.endswith("%") else number
        return int(bad > allowed)

    def table(self, columns: Sequence[str], most: int = 40) -> str:
        """The rows for a person: item, status, `columns` and the reason, aligned; of many, those that are not done."""
        told = [r for r in self.rows if r["status"] not in ("done", "skipped", "added")]
        shown = self.rows if len(self.rows) <= most else told
        keys = [k for k in ("item", "status", *columns, "reason") if any(r.get(k) for r in shown)] or ["item", "status"]
        cells = [("slide", *keys[1:]), *([r.get(k, "") for k in keys] for r in shown)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(keys) - 1)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in cells
        ]
        counts = Counter(r["status"] for r in self.rows)
        return "\n".join([*lines, ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))])

    def write(self, path: Path) -> None:
        """Put the rows into the ledger, a CSV: each item keeps its newest row, items of earlier calls stay."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):  # several processes may have a share of the items
            rows = {r["item"]: r for r in [*read_ledger(path), *self.rows]}.values()
            columns = list(dict.fromkeys(k for r in rows for k in r)) or ["item", "status", "reason"]
            write_csv(path, columns, rows)
        self.ledger = path
