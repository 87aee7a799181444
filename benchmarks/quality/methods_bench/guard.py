"""The track L0, enforced: no weak step can reach pixel truth, neither in its folder nor by its command line."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import imagecodecs


class TruthSeen(Exception):  # noqa: N818 - it says what happened
    """Pixel truth is within reach of a weak step; nothing has been run."""


class Guard:
    """Knows the truth files of a fold, and refuses weak steps that could see one of them."""

    def __init__(self, truth: Sequence[Path]) -> None:
        self._files = {p.resolve() for p in truth}
        if not self._files:
            raise TruthSeen("there are no truth files to keep away: the pattern of the truth is wrong")
        self._above = {parent for p in self._files for parent in p.parents}
        self._sizes = {p.stat().st_size for p in self._files}
        self._contents: set[str] = set()

    def check(self, argv: Sequence[str], cwd: Path) -> None:
        """TruthSeen if a word of `argv` names truth or a folder above it, or if truth lies below `cwd`."""
        for word in argv:
            for path in _paths(word, cwd):
                if path in self._files or path in self._above:
                    raise TruthSeen(f"{word!r} of a weak step leads to the truth; the step: {' '.join(argv)}")
        for file in _files_below(cwd):
            if file.resolve() in self._files or self._is_copy(file):
                raise TruthSeen(f"{file}: pixel truth lies in the folder of the weak methods")

    def _is_copy(self, file: Path) -> bool:
        """Whether its bytes are those of a truth file that says something: nothing is nowhere on a negative slide."""
        if not file.is_file() or file.stat().st_size not in self._sizes:
            return False
        self._contents = self._contents or {_content(f) for f in self._files if not _is_of_one_value(f)}
        return _content(file) in self._contents


def _paths(word: str, cwd: Path) -> Iterator[Path]:
    """The paths that a word of a command line may mean: itself or what follows an `=`, patterns filled in."""
    for text in {word, word.partition("=")[2]} - {""}:
        if os.sep in text or (cwd / text).exists():
            yield (cwd / text).resolve()
            pattern = str(cwd / text.replace("{slide_id}", "*"))
            yield from (Path(p).resolve() for p in (glob.glob(pattern) if glob.has_magic(pattern) else ()))


def _files_below(folder: Path) -> Iterable[Path]:
    """Every file below a folder; what links lead to counts as lying there."""
    for top, _, files in os.walk(folder, followlinks=True):
        yield from (Path(top) / f for f in files)


def _is_of_one_value(file: Path) -> bool:
    """Whether it is an image whose pixels are all alike: also a method may answer so."""
    try:
        mask = imagecodecs.imread(file)
    except (ValueError, OSError, imagecodecs.DelayedImportError):  # no image, such as annotations in XML
        return False
    return bool((mask == mask.flat[0]).all())


def _content(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
