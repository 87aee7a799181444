"""The guard between weak methods and truth: what it lets pass, and that it does refuse."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from benchmarks.quality.methods_bench.guard import Guard, TruthSeen


@pytest.fixture
def weak(small: Path) -> Path:
    """A folder with links to the images."""
    folder = small / "work" / "weak"
    (folder / "slides").mkdir(parents=True)
    for image in (small / "data" / "images").iterdir():
        (folder / "slides" / image.name).symlink_to(image)
    (folder / "labels.csv").write_text("slide_id,label\na,bad\n")
    return folder


@pytest.fixture
def guard(small: Path) -> Guard:
    return Guard(sorted((small / "data" / "masks").iterdir()))


CLEAN = [
    "python",
    "-c",
    "from wsipipe.cli import main",
    "tile",
    "slides",
    "--labels",
    "labels.csv",
    "--map",
    "0=0,2=bad",
]


def test_a_step_passes_until_truth_lies_in_its_folder(guard: Guard, weak: Path, small: Path) -> None:
    guard.check(CLEAN, weak)
    (weak / "late.png").write_bytes((small / "data" / "masks" / "b.png").read_bytes())
    with pytest.raises(TruthSeen, match=r"late\.png: pixel truth lies in the folder"):
        guard.check(CLEAN, weak)


@pytest.mark.parametrize(
    "word",
    [
        "{data}/masks/a.png",
        "{data}/masks",
        "{data}",
        "{data}/masks/{slide_id}.png",
        "{data}/ma*/b.png",
        "--truth={data}/masks",
        "../../data/masks",
        "../..",
    ],
)
def test_a_command_that_leads_to_truth_is_refused(guard: Guard, weak: Path, small: Path, word: str) -> None:
    with pytest.raises(TruthSeen, match="of a weak step leads to the truth"):
        guard.check([*CLEAN, word.replace("{data}", str(small / "data"))], weak)


def test_a_link_to_truth_is_refused(guard: Guard, weak: Path, small: Path) -> None:
    (weak / "slides" / "x.png").symlink_to(small / "data" / "masks" / "a.png")
    with pytest.raises(TruthSeen, match=r"x\.png: pixel truth lies in the folder"):
        guard.check(CLEAN, weak)


def test_a_folder_of_truth_behind_a_link_is_refused(guard: Guard, weak: Path, small: Path) -> None:
    (weak / "more").symlink_to(small / "data")
    with pytest.raises(TruthSeen, match="pixel truth lies in the folder"):
        guard.check(CLEAN, weak)


def test_a_copy_of_truth_under_another_name_is_refused(guard: Guard, weak: Path, small: Path) -> None:
    deep = weak / "stores" / "a.zarr"
    deep.mkdir(parents=True)
    (deep / "0").write_bytes((small / "data" / "masks" / "b.png").read_bytes())
    with pytest.raises(TruthSeen, match="pixel truth lies in the folder"):
        guard.check(CLEAN, weak)


def test_an_empty_answer_is_no_copy_of_an_empty_truth_but_a_full_one_is(weak: Path, small: Path) -> None:
    empty, drawn = np.zeros((8, 8), np.uint8), np.eye(8, dtype=np.uint8)
    truth = small / "data" / "masks"
    for name, mask in (("a.png", empty), ("b.png", drawn)):
        (truth / name).write_bytes(imagecodecs.png_encode(mask))
    guard = Guard(sorted(truth.iterdir()))
    (weak / "answer.png").write_bytes(imagecodecs.png_encode(empty))
    guard.check(CLEAN, weak)
    (weak / "answer.png").write_bytes(imagecodecs.png_encode(drawn))
    with pytest.raises(TruthSeen, match=r"answer\.png: pixel truth"):
        guard.check(CLEAN, weak)


def test_a_file_of_the_same_size_passes_unless_it_has_the_bytes_of_truth(guard: Guard, weak: Path, small: Path) -> None:
    truth = (small / "data" / "masks" / "b.png").read_bytes()
    (weak / "other").write_bytes(b"x" * len(truth))
    guard.check(CLEAN, weak)
    (weak / "other").write_bytes(truth)
    with pytest.raises(TruthSeen, match="other: pixel truth"):
        guard.check(CLEAN, weak)


def test_a_guard_that_guards_nothing_is_refused() -> None:
    with pytest.raises(TruthSeen, match="no truth files"):
        Guard([])
