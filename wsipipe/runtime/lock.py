"""An exclusive lock across processes that names its holder."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from wsipipe.errors import StoreError


class SlideLock:
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

    def release(self) -> None:
        """Let go of it; nothing happens if it is not held."""
        if self._lock.is_locked:
            self._file.unlink(missing_ok=True)
            self._lock.release()
