"""Where and how work runs: device, precision, threads, progress, digests, and the ledger that owns the exit code."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from wsipipe.errors import ConfigError, WsipipeError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Progress(Protocol):
    """Told how far a named piece of long work has come; only the command line draws it."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `task` are done; `note` is what a person wants to see beside it."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Compute:
    """Where to compute, from which seed, and who is told how far it has come."""

    device: torch.device
    seed: int = 0
    progress: Progress = silent


def device(spec: str = "auto") -> torch.device:
    """The torch device of `spec`: `auto` (a GPU if there is one), `cpu` or `cuda:N`."""
    import torch

    if spec == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(spec)
    except RuntimeError:
        raise ConfigError(f"device {spec!r}: expected auto, cpu or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {spec!r}: expected auto, cpu or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {spec}: {torch.cuda.device_count()} CUDA devices found; use --device auto")
    return chosen


def autocast(on: torch.device) -> AbstractContextManager[None]:
    """bfloat16 arithmetic where the hardware has it (recent GPUs, CPUs with AVX512-BF16 or AMX), else float32."""
    import torch

    fast = torch.cuda.is_bf16_supported() if on.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(on.type, torch.bfloat16, enabled=bool(fast))


def threads(workers: int) -> int:
    """`workers`, or one a processor that this process may use."""
    return workers or len(os.sched_getaffinity(0))


def map_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int, on_done: Callable[[T, R], None] | None = None
) -> None:
    """Run `function` on every item in threads; at most twice `workers` items are in flight.

    The first exception stops the submission of further items and is raised.
    """
    n = threads(workers)
    with ThreadPoolExecutor(n) as pool:
        flying: dict[Future[R], T] = {}

        def settle(wait_all: bool) -> None:
            while flying and (wait_all or len(flying) >= 2 * n):
                future = next(as_completed(flying))
                item = flying.pop(future)
                result = future.result()
                if on_done:
                    on_done(item, result)

        try:
            for item in items:
                settle(wait_all=False)
                flying[pool.submit(function, item)] = item
            settle(wait_all=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def digest(*parts: Any) -> str:
    """Short SHA-256 of JSON-ready values, stable across runs and machines."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file aside, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(data)
    os.replace(aside, path)


def write_json(path: Path, data: object) -> None:
    """Write JSON, as `write_bytes`."""
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True, default=str) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table, as `write_bytes`; a row without a column leaves its cell empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


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
        """Record one item; `status` is done, skipped, empty or failed."""
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

    def write(self, path: Path) -> None:
        """Put the rows into the ledger, a CSV: each item keeps its newest row, items of earlier calls stay."""
        rows = {r["item"]: r for r in [*read_ledger(path), *self.rows]}.values()
        columns = list(dict.fromkeys(k for r in rows for k in r)) or ["item", "status", "reason"]
        write_csv(path, columns, rows)
        self.ledger = path
