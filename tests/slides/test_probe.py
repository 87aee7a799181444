"""The child process: same errors as open_slide, crashes in place of the run, leaves no process or file behind."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from wsipipe.errors import SlideError, WsipipeError
from wsipipe.slides import open_slide
from wsipipe.slides.probe import Prober, _samples


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    """One for all tests: it restarts its child after each that dies."""
    with Prober(seconds=30) as prober:
        yield prober


def children() -> set[int]:
    """Process ids of this process's children, zombies too."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in mine.read_text().split()}


def write_huge_tile(path: Path, side_px: int) -> None:
    """A TIFF of some 240 bytes that declares one RGB tile of side_px squared."""
    long, short = 4, 3
    tags = [
        (256, long, 1, side_px), (257, long, 1, side_px), (258, short, 3, 134), (259, short, 1, 1), (262, short, 1, 2),
        (277, short, 1, 3), (322, long, 1, side_px), (323, long, 1, side_px), (324, long, 1, 140), (325, long, 1, 100),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    assert len(head) == 134
    path.write_bytes(head + struct.pack("<HHH", 8, 8, 8) + bytes(100))


def test_a_good_slide_passes_with_one_child_for_all(prober: Prober, svs_path: Path, png_path: Path) -> None:
    prober.check(svs_path, "blob")
    before = children()
    prober.check(svs_path, "blob", (0.25, 0.5), "manifest")
    prober.check(png_path, "image", 0.5)
    assert children() == before


@pytest.mark.parametrize("data", [None, b"", b"nothing"])
@pytest.mark.parametrize("name", ["a.svs", "ü 玻片 #1%.tif", "a\udcff.png"])
def test_the_error_is_that_of_open_slide(prober: Prober, tmp_path: Path, name: str, data: bytes | None) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SlideError) as wanted:
        open_slide(path, "a", 0.5)
    with pytest.raises(SlideError) as found:
        prober.check(path, "a", 0.5)
    assert str(found.value) == str(wanted.value)


def test_a_resolution_is_judged_as_open_slide_does(prober: Prober, png_path: Path) -> None:
    for override in (0.0, 250.0, (0.5, 250.0)):
        with pytest.raises(SlideError) as wanted:
            open_slide(png_path, "image", override)
        with pytest.raises(SlideError) as found:
            prober.check(png_path, "image", override)
        assert str(found.value) == str(wanted.value)


def test_unreadable_pixels_are_not_an_error(prober: Prober, tmp_path: Path, svs_path: Path) -> None:
    data = bytearray(svs_path.read_bytes())
    data[2000 : len(data) // 2] = bytes(len(data) // 2 - 2000)
    (tmp_path / "bad.svs").write_bytes(data)
    slide = open_slide(tmp_path / "bad.svs", "bad")
    with pytest.raises(SlideError, match=r"bad\.svs: "):
        slide.read((0, 0), 0, slide.level_size(0))
    before = children()
    prober.check(tmp_path / "bad.svs", "bad")
    assert children() == before, "its child died of it"


def test_a_crafted_file_is_an_error_and_the_next_slide_passes(prober: Prober, tmp_path: Path, svs_path: Path) -> None:
    write_huge_tile(tmp_path / "crafted.tiff", 60_000)
    with pytest.raises(SlideError, match=r"crafted\.tiff: "):
        prober.check(tmp_path / "crafted.tiff", "crafted", 0.5)
    prober.check(svs_path, "blob")


def test_too_much_memory_in_a_library_is_an_error(tmp_path: Path, svs_path: Path) -> None:
    write_huge_tile(tmp_path / "crafted.tiff", 8192)  # 256 MiB as RGBA
    with Prober(memory_bytes=128 * 2**20) as prober:
        with pytest.raises(SlideError) as caught:
            prober.check(tmp_path / "crafted.tiff", "crafted", 0.5)
        assert str(caught.value) == (
            f"{tmp_path}/crafted.tiff: opening it took more than the limit of 0.125 GiB of memory per slide (in a "
            "separate process; other slides are unaffected); open it in the vendor's viewer, copy it again, "
            "or exclude it"
        )
        prober.check(svs_path, "blob")


def test_too_much_memory_in_python_is_an_error(tmp_path: Path, svs_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(imagecodecs.png_encode(np.zeros((8000, 8000), np.uint8), level=1))
    with Prober(memory_bytes=128 * 2**20) as prober:
        with pytest.raises(
            SlideError, match=r"large\.png: opening it took more than the limit of 0\.125 GiB of memory"
        ):
            prober.check(tmp_path / "large.png", "large", 0.5)
        prober.check(svs_path, "blob")


def test_a_slide_that_hangs_exceeds_the_time_limit(tmp_path: Path, svs_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.svs")
    with Prober(seconds=0.5) as prober:
        with pytest.raises(SlideError, match=r"hangs\.svs: opening it took more than 0\.5 s \(in a separate process"):
            prober.check(tmp_path / "hangs.svs", "hangs")
        prober.check(svs_path, "blob")


def test_a_child_killed_at_work_fails_its_slide_and_one_killed_idle_fails_none(tmp_path: Path, svs_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.svs")
    others = children()
    with Prober() as prober:
        prober.check(svs_path, "blob")
        (child,) = children() - others
        killer = threading.Timer(0.3, os.kill, (child, signal.SIGSEGV))
        killer.start()
        with pytest.raises(SlideError, match=r"hangs\.svs: opening it killed the reader process \(SIGSEGV\) \(in a"):
            prober.check(tmp_path / "hangs.svs", "hangs")
        killer.join()
        prober.check(svs_path, "blob")
        (child,) = children() - others
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        prober.check(svs_path, "blob")


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """As in a terminal: a shell script's `pytest &` starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_no_process_and_no_file_is_left_even_after_an_interrupt(
    tmp_path: Path, svs_path: Path, ctrl_c_interrupts: None
) -> None:
    os.mkfifo(tmp_path / "hangs.svs")
    before, files = children(), len(os.listdir("/proc/self/fd"))
    with Prober():
        pass
    ctrl_c = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    with Prober() as prober:
        prober.check(svs_path, "blob")
        assert len(children()) == len(before) + 1
        ctrl_c.start()
        with pytest.raises(KeyboardInterrupt):
            prober.check(tmp_path / "hangs.svs", "hangs")
        assert children() == before
        prober.check(svs_path, "blob")
    ctrl_c.join()
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_child_can_be_started_early_and_ended_before_the_block(svs_path: Path) -> None:
    before = children()
    with Prober() as prober:
        (early,) = children() - before if prober.start() else ()
        assert prober.start() is prober
        prober.check(svs_path, "blob")
        assert children() - before == {early}
        prober.end()
        assert children() == before
        prober.check(svs_path, "blob")
        assert len(children() - before) == 1
    assert children() == before


def test_a_child_that_cannot_start_is_an_error(svs_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Prober() as prober,
        pytest.raises(WsipipeError, match=r"the process that checks slides ended the reader process"),
    ):
        prober.check(svs_path, "blob")


def test_the_child_loads_only_what_opening_needs_and_ends_with_its_parent() -> None:
    code = (
        "import sys; sys.argv = ['', '5', '1000000000']\n"
        "from wsipipe.slides import probe; probe.main()\n"
        "print(*[g for g in ('torch', 'zarr', 'dask', 'skimage', 'scipy') if g in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr.strip()) == (0, '{"problem": ""}\n', "")


def test_the_samples_are_the_centre_of_every_level_and_the_last_corner(array_slide: Any) -> None:
    slide = array_slide(np.zeros((600, 1000, 3), np.uint8), (1, 4))
    assert list(_samples(slide)) == [
        ((372, 172), 0, (256, 256)),
        ((0, 0), 1, (250, 150)),
        ((744, 344), 0, (256, 256)),
    ]


def test_real_slides(prober: Prober, real_wsi: Path) -> None:
    for name in ("CMU-1-Small-Region.svs", "dicom_cmu-1-small-region", "test3-DAPI-2-(387).ndpi", "unreadable.svs"):
        prober.check(real_wsi / name, "real")
    with pytest.raises(SlideError, match=r"unopenable\.tiff: "):
        prober.check(real_wsi / "unopenable.tiff", "u", 0.5)
