"""A fingerprint depends on the content of a slide, not on its name, folder or time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.slides.fingerprint import SAMPLE_BYTES, SAMPLES, fingerprint

SIZE = 1_000_003
STARTS = [i * (SIZE - SAMPLE_BYTES) // (SAMPLES - 1) for i in range(SAMPLES)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("print") / "a.svs"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def changed(path: Path, at: int, to: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    to.write_bytes(data)
    return to


def test_a_copy_of_a_slide_has_the_same_fingerprint(slide: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(slide, tmp_path / "other name.svs"))
    os.utime(copy, (1, 1))
    assert fingerprint(copy) == fingerprint(slide)
    assert len(fingerprint(slide)) == 32


@given(st.sampled_from(STARTS), st.integers(0, SAMPLE_BYTES - 1))
def test_a_changed_byte_in_a_sampled_place_changes_it(slide: Path, start: int, offset: int) -> None:
    assert fingerprint(changed(slide, start + offset, slide.with_name("b.svs"))) != fingerprint(slide)


def test_the_samples_reach_from_the_first_byte_to_the_last(slide: Path, tmp_path: Path) -> None:
    for at in (0, SIZE - 1):
        assert fingerprint(changed(slide, at, tmp_path / "b.svs")) != fingerprint(slide)
    between = STARTS[3] + SAMPLE_BYTES + 10
    assert fingerprint(changed(slide, between, tmp_path / "b.svs")) == fingerprint(slide)


def test_another_length_changes_it(slide: Path, tmp_path: Path) -> None:
    seen = {fingerprint(slide)}
    for data in (b"", b"\0", b"\0\0", bytes(SAMPLE_BYTES), bytes(SAMPLE_BYTES + 1)):
        (tmp_path / "b.svs").write_bytes(data)
        seen.add(fingerprint(tmp_path / "b.svs"))
    assert len(seen) == 6


def test_the_hash_of_the_reader_is_part_of_it(slide: Path) -> None:
    assert len({fingerprint(slide), fingerprint(slide, "1"), fingerprint(slide, "2")}) == 3


def mrxs(folder: Path) -> tuple[Path, Path]:
    """A slide that is an index file, and the folder next to it with the pixels."""
    (folder / "a").mkdir(parents=True)
    (folder / "a.mrxs").write_bytes(b"index")
    for n in range(3):
        (folder / f"a/Data000{n}.dat").write_bytes(bytes(100 + n))
    return folder / "a.mrxs", folder / "a"


def dicom(folder: Path) -> tuple[Path, Path]:
    """A slide that is the first of the instances in its folder."""
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.DCM").write_bytes(bytes(100 + n))
    return folder / "0.DCM", folder


@pytest.mark.parametrize("kind", [mrxs, dicom])
def test_companion_files_are_part_of_it(tmp_path: Path, kind: Any) -> None:
    path, parts = kind(tmp_path / "one")
    first = fingerprint(path)
    copied = Path(shutil.copytree(tmp_path / "one", tmp_path / "two")) / path.name
    assert fingerprint(copied) == first
    (path.parent / "notes.txt").write_text("no part of a slide")
    (path.parent / "other.svs").write_text("another slide")
    assert fingerprint(path) == first
    part = sorted(p for p in parts.iterdir() if p.suffix in (".dat", ".DCM"))[2]
    part.write_bytes(bytes(99))
    shorter = fingerprint(path)
    part.unlink()
    assert len({first, shorter, fingerprint(path)}) == 3


def test_an_index_without_its_folder_has_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"index")
    assert fingerprint(tmp_path / "a.mrxs")
