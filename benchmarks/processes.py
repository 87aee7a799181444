"""Wait for a process and see how much memory it and all that it starts hold."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path


def wait_for(process: subprocess.Popen[bytes] | subprocess.Popen[str], every_s: float = 0.02) -> float:
    """Wait until `process` has ended and has its returncode; the most MiB that its process tree held.

    The larger of its own high-water mark and the sum over the tree, sampled every `every_s` seconds. Interrupted, it is
    killed. Until it has begun its program, a process counts as the one that starts it: that should be small.
    """
    seen = 0
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            seen = max(seen, _resident_kib(process.pid))
            time.sleep(every_s)
    except BaseException:
        process.kill()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return max(seen, usage.ru_maxrss) / 1024


def _resident_kib(pid: int) -> int:
    """Resident memory of a process and of all below it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = " ".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return 0
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)
    return own + sum(_resident_kib(int(child)) for child in children.split())
