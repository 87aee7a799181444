"""Slide readers: one module per family of formats. This folder is the registry: a new module is a new reader.

A reader is a module with

    PRIORITY: int                          readers are tried in ascending order
    sniff(file: Path) -> Opener | None     what opens this file; None if the file is of another format
    SUFFIXES: tuple[str, ...]              optional: suffixes (lower case) that mark slides in a folder

`sniff` examines the content of the file where it can. It may open the file and hand what it has read to the opener.
It raises SlideError if the format is known and the file is damaged.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from wsipipe.errors import SlideError
from wsipipe.slides.base import Opener


class Reader(Protocol):
    """A module of this folder."""

    __name__: str
    PRIORITY: int

    def sniff(self, file: Path, /) -> Opener | None:
        """What opens this file; None if the file is of another format."""
        ...


def load_readers() -> list[Reader]:
    """All readers in ascending order of PRIORITY; imports them and their libraries (OpenSlide, tifffile, ...)."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    readers = [cast("Reader", importlib.import_module(f"{__name__}.{name}")) for name in names]
    return sorted(readers, key=lambda reader: (reader.PRIORITY, reader.__name__))


def find_opener(file: Path) -> Opener:
    """What opens this file, from the first reader that knows its format. Raises SlideError if no reader does."""
    for reader in load_readers():
        opener = reader.sniff(file)
        if opener is not None:
            return opener
    raise SlideError(f"{file}: no reader knows this format; check that the file is complete")


def known_suffixes() -> tuple[str, ...]:
    """The suffixes that mark slides in a folder, in alphabetical order."""
    return tuple(sorted({suffix for reader in load_readers() for suffix in getattr(reader, "SUFFIXES", ())}))
