"""Open foreign slides first in a child process, which a crafted or damaged file may take down in place of the run."""

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

log = logging.getLogger(__name__)

MEMORY_BYTES = 2 * 2**30
"""What opening one slide may take: an honest one takes some MB, an image without tiles at most 1.8 GB."""

_SAMPLE_PX = 256
_LONGEST_ANSWER = 2000
_STDERR_BYTES = 2**20
_OUT_OF_MEMORY = re.compile(rb"failed to allocate|cannot allocate|bad_alloc|out of memory|MemoryError", re.IGNORECASE)
"""Last words of GLib, libc, C++ and Python."""


class Prober:
    """Opens slides in a child of its own, which is started when needed and anew after a slide has killed it.

    seconds: time for one slide. memory_bytes: what one slide may take. Not for several threads at once; the child ends
    with the `with` block. `start` early where there is other work to do: the child takes a quarter of a second.
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
        if self._child is None or not self._child.lives():
            self.end()
            self._child = _Child(*self._limits)
        return self

    def check(
        self, path: Path, slide_id: str, mpp_override: float | tuple[float, float] = 0.0, mpp_source: str = "override"
    ) -> None:
        """Open a slide and read a little of it in the child; arguments are those of `open_slide`.

        Raises SlideError with the reader's own words if it cannot be opened, and if the child dies or takes too long.
        Pixels that cannot be decoded are no error here: tiling judges them one by one.
        """
        child = self.start()._child
        assert child is not None
        try:
            child.await_ready()
            child.tell(
                {"path": str(path), "slide_id": slide_id, "mpp_override": mpp_override, "mpp_source": mpp_source}
            )
            problem = child.answer()
        except BaseException:
            self.end()  # interrupted: its answer must not be taken for that on the next slide
            raise
        if problem is None:
            raise SlideError(
                f"{path}: opening it {child.last_words()}; it was opened in a separate process and nothing else is "
                "harmed; look at it with its maker's viewer, copy it anew, or leave it out"
            )
        if problem:
            raise SlideError(problem)

    def end(self) -> None:
        """End the child, if there is one; it is started again when needed."""
        if self._child:
            self._child.end()
        self._child = None


class _Child:
    """The process that opens slides, as its parent sees it."""

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
        """Wait until it has started. Raises WsipipeError if it cannot."""
        if not self._ready and self.answer() is None:
            raise WsipipeError(f"the process that opens slides first {self.last_words()}: its error is in the log")
        self._ready = True

    def lives(self) -> bool:
        """Whether it waits for the next slide."""
        return self._process.poll() is None

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request; a dead child gives no answer to it. What it said of the last slide is forgotten."""
        self._stderr.seek(0)
        self._stderr.truncate()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def answer(self) -> str | None:
        """Wait for the answer: the problem with the slide, empty if all is well, None if the child died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return str(json.loads(line)["problem"]) if line.endswith(b"\n") else None

    def last_words(self) -> str:
        """Why it died, as the end of a sentence."""
        exit_code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read(_STDERR_BYTES)
        if said:
            log.warning("the reader died and said: %s", said[-500:].decode(errors="replace").strip())
        seconds, memory_bytes = self._limits
        if exit_code == -signal.SIGALRM:
            return f"took more than {seconds:g} s"
        if _OUT_OF_MEMORY.search(said):
            return f"took more than the {memory_bytes / 2**30:g} GiB of memory that a slide may take"
        if exit_code < 0:
            verb = "aborted" if exit_code == -signal.SIGABRT else "killed"
            return f"{verb} the reader ({signal.Signals(-exit_code).name})"
        return f"ended the reader (exit code {exit_code})"

    def end(self) -> None:
        """Kill it, wait for it, close its pipes."""
        self._made.close()


def main() -> None:
    """The child: for each request on stdin an answer on stdout; arguments are seconds and bytes for a slide."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    _limit(memory_bytes)
    problem = ""  # the first answer says that it is ready
    while True:
        print(json.dumps({"problem": problem[:_LONGEST_ANSWER]}), file=answers, flush=True)
        request = sys.stdin.readline()
        if not request:
            return
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process: in native code, or orphaned, too
        problem = _problem(json.loads(request))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit(memory_bytes: int) -> None:
    """Hold this process, with all that opening needs loaded, to `memory_bytes` more; it leaves nothing behind."""
    from wsipipe.slides.readers import image, openslide, tiff  # noqa: F401

    used_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: used_bytes + memory_bytes,
        resource.RLIMIT_FSIZE: _STDERR_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in limits.items():
        allowed = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if allowed == resource.RLIM_INFINITY else min(most, allowed),) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _problem(request: dict[str, Any]) -> str:
    """Why the slide cannot be opened; empty if it can. MemoryError is for the parent to tell."""
    given = request["mpp_override"]
    override = tuple(given) if isinstance(given, list) else given
    try:
        slide = open_slide(Path(request["path"]), request["slide_id"], override, request["mpp_source"])
    except SlideError as error:
        return str(error)
    for xy_px0, level, size_px in _samples(slide):
        try:
            slide.read(xy_px0, level, size_px)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as in the docstring of check: only the opening counts
            log.info("%s: level %d at %s: %s", request["path"], level, xy_px0, error)
    slide.close()
    return ""


def _samples(slide: Slide) -> Iterator[tuple[tuple[int, int], int, tuple[int, int]]]:
    """Arguments for `read`: the centre of every level, and the last corner of level 0."""
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
