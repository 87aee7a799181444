"""Locks across processes: SlideLock names the process that has it; `lock_file` guards the shared lists of a store."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from wsipipe.errors import StoreError


def lock_file(path: Path) -> Path:
    """The file that writers of the store at `path` lock while they change its lists and attributes."""
    return path.with_name(f".{path.name}.lock")


class SlideLock:
    """An exclusive lock across processes. Its file names the process that has it and is removed on release.

    `what` describes the locked work in the error of whoever comes second. A crash frees the lock.
    """

    def __init__(self, file: Path, what: str) -> None:
        self._file, self._what = file, what
        self._lock = FileLock(file)

    def acquire(self) -> None:
        """Acquire the lock without waiting. Raises StoreError with the process that has it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            owner = self._file.read_text(encoding="utf-8").strip() or "another process"
            raise StoreError(f"{self._what} is locked by {owner}; wait for it to finish, or stop it") from None
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n", encoding="utf-8")

    @property
    def is_acquired(self) -> bool:
        """Whether this object has the lock."""
        return self._lock.is_locked

    def release(self) -> None:
        """Release the lock and remove its file; no effect if this object does not have it."""
        if self._lock.is_locked:
            self._file.unlink(missing_ok=True)
            self._lock.release()
