"""Open each slide in a child process first, so that a crafted or damaged file crashes the child and not the run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from wsipipe.errors import SlideError, WsipipeError
from wsipipe.slides.base import Slide
from wsipipe.slides.open import open_slide
from wsipipe.slides.readers import load_readers

log = logging.getLogger(__name__)

MEMORY_BYTES = 2 * 2**30
"""Memory limit for opening one slide: a normal slide takes a few MB, an image without tiles at most 1.8 GB."""

_SAMPLE_PX = 256
_MAX_REPLY_CHARS = 2000
_MAX_STDERR_BYTES = 2**20
_OUT_OF_MEMORY = re.compile(rb"failed to allocate|cannot allocate|bad_alloc|out of memory|MemoryError", re.IGNORECASE)
"""Messages of GLib, libc, C++ and Python when an allocation fails."""


class Prober:
    """Opens slides in a child process, which is started on first use and restarted after a slide has killed it.

    seconds, memory_bytes: limits per slide. Not thread-safe. The child ends with the `with` block. Call `start` early
    if there is other work to do meanwhile: the child takes a quarter of a second to start.
    """

    def __init__(self, seconds: float = 60.0, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limits = (seconds, memory_bytes)
        self._child: _Child | None = None

    def __enter__(self) -> Prober:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> Prober:
        """Start the child, without waiting for it."""
        if self._child is None or not self._child.is_alive():
            self.end()
            self._child = _Child(*self._limits)
        return self

    def check(
        self, path: Path, slide_id: str, mpp_override: float | tuple[float, float] = 0.0, mpp_source: str = "override"
    ) -> None:
        """Open a slide and read a few samples of it in the child; the arguments are those of `open_slide`.

        Raises SlideError with the reader's message if the slide cannot be opened, and if the child dies or exceeds a
        limit. Pixels that cannot be decoded are not an error here: tiling handles them tile by tile.
        """
        child = self.start()._child
        assert child is not None
        try:
            child.await_ready()
            child.send(
                {"path": str(path), "slide_id": slide_id, "mpp_override": mpp_override, "mpp_source": mpp_source}
            )
            problem = child.receive()
        except BaseException:
            self.end()  # interrupted: its reply must not be mistaken for that on the next slide
            raise
        if problem is None:
            raise SlideError(
                f"{path}: opening it {child.cause_of_death()} (in a separate process; other slides are unaffected); "
                "open it in the vendor's viewer, copy it again, or exclude it"
            )
        if problem:
            raise SlideError(problem)

    def end(self) -> None:
        """End the child, if there is one; the next check starts another."""
        if self._child:
            self._child.end()
        self._child = None


class _Child:
    """The parent's end of the process that opens slides."""

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self._limits = (seconds, memory_bytes)
        self._ready = False
        with ExitStack() as made:
            self._stderr = made.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(  # noqa: S603 - this very module
                [sys.executable, "-P", "-m", "wsipipe.slides.probe", str(seconds), str(memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent to answer
            )
            made.enter_context(self._process)
            made.callback(self._process.kill)
            self._made = made.pop_all()

    def await_ready(self) -> None:
        """Wait until the child has started. Raises WsipipeError if it fails to."""
        if not self._ready and self.receive() is None:
            raise WsipipeError(f"the process that checks slides {self.cause_of_death()}; see its error in the log")
        self._ready = True

    def is_alive(self) -> bool:
        """Whether the child is running."""
        return self._process.poll() is None

    def send(self, request: dict[str, Any]) -> None:
        """Send a request; a dead child does not reply to it. Clears the error output of the last slide."""
        self._stderr.seek(0)
        self._stderr.truncate()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def receive(self) -> str | None:
        """Wait for the reply: the problem with the slide, empty if there is none, None if the child died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return str(json.loads(line)["problem"]) if line.endswith(b"\n") else None

    def cause_of_death(self) -> str:
        """Why the child died, as the end of a sentence."""
        exit_code = self._process.wait()
        self._stderr.seek(0)
        stderr = self._stderr.read(_MAX_STDERR_BYTES)
        if stderr:
            log.warning("the reader process died with: %s", stderr[-500:].decode(errors="replace").strip())
        seconds, memory_bytes = self._limits
        if exit_code == -signal.SIGALRM:
            return f"took more than {seconds:g} s"
        if _OUT_OF_MEMORY.search(stderr):
            return f"took more than the limit of {memory_bytes / 2**30:g} GiB of memory per slide"
        if exit_code < 0:
            verb = "aborted" if exit_code == -signal.SIGABRT else "killed"
            return f"{verb} the reader process ({signal.Signals(-exit_code).name})"
        return f"ended the reader process (exit code {exit_code})"

    def end(self) -> None:
        """Kill the child, wait for it, and close its pipes."""
        self._made.close()


def main() -> None:
    """The child: replies on stdout to each request on stdin; its arguments are the seconds and bytes per slide."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep what libraries print out of the replies
    _limit_memory(memory_bytes)
    problem = ""  # the first reply reports that the child is ready
    while True:
        print(json.dumps({"problem": problem[:_MAX_REPLY_CHARS]}), file=replies, flush=True)
        request = sys.stdin.readline()
        if not request:
            return
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process even in native code or orphaned
        problem = _open_and_sample(json.loads(request))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(memory_bytes: int) -> None:
    """Limit this process to `memory_bytes` beyond what the loaded readers take; forbid large files and core dumps."""
    load_readers()
    used_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: used_bytes + memory_bytes,
        resource.RLIMIT_FSIZE: _MAX_STDERR_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        allowed = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if allowed == resource.RLIM_INFINITY else min(limit, allowed),) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _open_and_sample(request: dict[str, Any]) -> str:
    """Why the slide cannot be opened, empty if it can. A MemoryError ends the child; the parent reports it."""
    override = request["mpp_override"]
    override = tuple(override) if isinstance(override, list) else override
    try:
        slide = open_slide(Path(request["path"]), request["slide_id"], override, request["mpp_source"])
    except SlideError as error:
        return str(error)
    for xy_px0, level, size_px in _samples(slide):
        try:
            slide.read(xy_px0, level, size_px)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - only a failure to open counts, see Prober.check
            log.info("%s: level %d at %s: %s", request["path"], level, xy_px0, error)
    slide.close()
    return ""


def _samples(slide: Slide) -> Iterator[tuple[tuple[int, int], int, tuple[int, int]]]:
    """Arguments of `Slide.read` for the centre of every level and the bottom right corner of level 0."""
    for level, down in enumerate(slide.downsamples):
        size_px = slide.level_size(level)
        w, h = (min(_SAMPLE_PX, n) for n in size_px)
        x, y = (size_px[0] - w) // 2, (size_px[1] - h) // 2
        yield (round(x * down), round(y * down)), level, (w, h)
    width, height = slide.info.size_px0
    w, h = min(_SAMPLE_PX, width), min(_SAMPLE_PX, height)
    yield (width - w, height - h), 0, (w, h)


if __name__ == "__main__":
    main()
