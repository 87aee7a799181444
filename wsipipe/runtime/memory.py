"""Ask glibc to keep the heap small; other C libraries ignore it."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8
"""Number of this option of glibc's mallopt."""


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
