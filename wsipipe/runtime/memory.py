"""Keep the heap small: two calls to glibc, without effect in other C libraries."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8
"""Number of this option in glibc's mallopt."""


def share_heap() -> None:
    """Make all threads share one heap, so that memory which one thread frees serves the others.

    Call it before threads start. `trim_memory` then returns much more to the system.
    """
    with suppress(AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_memory() -> None:
    """Return freed memory to the system: glibc keeps the space of large arrays for later."""
    with suppress(AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)
