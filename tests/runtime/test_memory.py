"""The heap of glibc."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("shared", [False, True])
def test_threads_may_share_one_heap(tmp_path: Path, shared: bool) -> None:
    code = f"""
import ctypes, threading
from wsipipe.runtime.memory import share_heap
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
if {shared}:
    share_heap()
both = threading.Barrier(2)
def take():
    libc.malloc(1000)
    both.wait()
threads = [threading.Thread(target=take) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
libc.malloc_info(0, ctypes.c_void_p(libc.fopen({str(tmp_path / "heaps")!r}.encode(), b"w")))
libc.fflush(None)
"""
    if not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("another C library than glibc")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert ((tmp_path / "heaps").read_text().count("<heap nr=") == 1) == shared
