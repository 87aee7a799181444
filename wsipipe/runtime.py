"""Where and how work runs: device, precision, threads, progress, digests, and the ledger that owns the exit code."""

from __future__ import annotations

import csv
import ctypes
import hashlib
import io
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from wsipipe.errors import ConfigError, StoreError, WsipipeError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SCHEDULER_S = 10.0
"""Time in which a dask scheduler has to answer."""

_M_ARENA_MAX = -8
"""Number of this option of glibc's mallopt."""

_LOOK_S = 5.0
"""Seconds after which a cluster that gives no result is looked after."""

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

    if spec == "auto" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if spec == "auto":
        return torch.device("cpu")
    try:
        chosen = torch.device(spec)
    except RuntimeError:
        raise ConfigError(f"device {spec!r}: expected auto, cpu or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {spec!r}: expected auto, cpu or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {spec}: {torch.cuda.device_count()} CUDA devices found; use --device auto")
    return chosen


def compiled(model: torch.nn.Module, on: torch.device) -> None:
    """Let torch compile the forward pass where that pays, on a GPU; weights and their names stay as they are."""
    if on.type == "cuda":
        model.compile(mode="default")


def autocast(on: torch.device) -> AbstractContextManager[None]:
    """bfloat16 arithmetic on GPUs that have it, float32 elsewhere: any CPU gives the answers of every other."""
    import torch

    return torch.autocast(on.type, torch.bfloat16, enabled=on.type == "cuda" and torch.cuda.is_bf16_supported())


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


@contextmanager
def executor(workers: int, dask: str = "") -> Iterator[tuple[Executor, int]]:
    """What runs tasks, and how many at a time: threads of this process, or the workers of a dask cluster.

    `dask` is the address of a scheduler (tcp://host:port) or a number: that many local processes. A task is a function
    at the top of a module, of picklable values; what it makes lies on a file system that all workers share.
    Raises ConfigError if the scheduler does not answer; WsipipeError if it is lost while the block runs, or if every
    worker that tries a task is.
    """
    if not dask:
        n = threads(workers)
        pool = ThreadPoolExecutor(n)
        try:
            yield pool, n
        finally:
            pool.shutdown(cancel_futures=True)
        return
    try:
        from distributed import Client, KilledWorker, LocalCluster
    except ImportError:
        raise ConfigError(
            "--dask needs the package distributed; install it with: pip install 'wsipipe[dask]'"
        ) from None
    with ExitStack() as stack:
        if dask.isdecimal():
            local = LocalCluster(
                n_workers=int(dask),
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any free port: the usual one may be another cluster's
                scheduler_kwargs={"dashboard": False},
                silence_logs=40,
            )
            dask = stack.enter_context(local).scheduler_address
        try:
            client = stack.enter_context(Client(dask, timeout=SCHEDULER_S, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(f"--dask {dask}: no scheduler answers there ({error})") from None
        n = sum(client.nthreads().values())
        if not n:
            raise ConfigError(f"--dask {dask}: the scheduler has no workers; start some, e.g. dask worker {dask}")
        try:
            yield stack.enter_context(client.get_executor(pure=False)), n
        except CancelledError:
            raise WsipipeError(
                f"--dask {dask}: the scheduler was lost; what is written stays; "
                "start it, and run the same command again"
            ) from None
        except KilledWorker as error:
            raise WsipipeError(
                f"--dask {dask}: worker after worker died ({' '.join(str(error).split())}); what is written stays; "
                "give them more memory, and run the same command again"
            ) from None


def first_done(pool: Executor, futures: Collection[Future[R]]) -> set[Future[R]]:
    """Wait until one or more of the futures of `pool` are done; CancelledError if its dask cluster is lost.

    The results of a lost cluster never come: it is looked after once in a while.
    """
    while not (done := wait(futures, _LOOK_S, return_when=FIRST_COMPLETED).done):
        if getattr(getattr(pool, "_client", None), "status", "") == "closed":
            raise CancelledError
    return done


class Hold:
    """An exclusive hold on a piece of work, over processes; the file names who has it, and goes when it is let go."""

    def __init__(self, file: Path, what: str) -> None:
        self._file, self._what = file, what
        self._lock = FileLock(file)

    def take(self) -> None:
        """Take it, or raise StoreError that names the holder."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = self._file.read_text(encoding="utf-8").strip() or "another process"
            raise StoreError(f"{self._what} is held by {holder}; wait for it to end, or stop it") from None
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n", encoding="utf-8")

    @property
    def is_held(self) -> bool:
        """Whether this process has it."""
        return self._lock.is_locked

    def let_go(self) -> None:
        """Let go of it; nothing happens if it is not held."""
        if self._lock.is_locked:
            self._file.unlink(missing_ok=True)
            self._lock.release()


def share_heap() -> None:
    """Let the threads of this process share one heap: glibc gives each its own, and what one frees the others lack.

    To be called before there are threads; `trim_memory` then finds much more to give back.
    """
    with suppress(AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_memory() -> None:
    """Give freed memory back to the system: glibc keeps what large arrays leave, as if as much were needed again."""
    with suppress(AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


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
        keys = ("item", "status", *columns, "reason")
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
