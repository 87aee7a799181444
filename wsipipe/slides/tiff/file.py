"""The bytes of a TIFF file and its directories, read no further than they are asked."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError

_TYPES = {
    1: "u1",
    2: "u1",
    3: "u2",
    4: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
"""TIFF type -> numpy type, of whole numbers and text: no fraction is asked for here."""

_CLASSIC, _BIG = 42, 43
_MOST_TAGS = 4096
"""Tags of one directory; more are a sign of damage."""


class Tag(IntEnum):
    """Tags of a page, by their numbers in TIFF 6.0 and its technical notes; the depths are libtiff's."""

    IMAGE_WIDTH = 256
    IMAGE_LENGTH = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    IMAGE_DESCRIPTION = 270
    ORIENTATION = 274
    SAMPLES_PER_PIXEL = 277
    PLANAR_CONFIGURATION = 284
    TILE_WIDTH = 322
    TILE_LENGTH = 323
    TILE_OFFSETS = 324
    TILE_BYTE_COUNTS = 325
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347
    IMAGE_DEPTH = 32997
    TILE_DEPTH = 32998


class TiffFileBytes:
    """A file read by position, so that threads may share it; closed with its last user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on: fewer than `size` where the file ends. Raises SlideError."""
        try:
            return os.pread(self._file.fileno(), max(0, min(size, self.size - offset)), min(offset, self.size))
        except OSError as error:
            raise SlideError(f"{self.path}: it cannot be read at byte {offset} ({error.strerror})") from None


class Directory:
    """The tags of one page. What a tag holds is read when it is asked for: a table of 150,000 tiles is one array."""

    def __init__(self, file: TiffFileBytes, order: str, entries: NDArray[np.void]) -> None:
        self._file, self._order = file, order
        self._rows = {int(tag): row for row, tag in enumerate(entries["tag"])}
        self._entries = entries

    def __contains__(self, tag: Tag) -> bool:
        return tag in self._rows

    def values(self, tag: Tag) -> NDArray[Any] | None:
        """What a tag holds: a one-dimensional array of its numbers, or of the bytes of its text; None if it is absent.

        Raises ValueError if it lies outside the file or is of another type.
        """
        if tag not in self:
            return None
        row = self._rows[tag]
        kind, count, held = (self._entries[field][row : row + 1] for field in ("type", "count", "value"))
        if int(kind[0]) not in _TYPES:
            raise ValueError(f"tag {tag.name} is of the type {kind[0]}, not of counts or text")
        dtype = np.dtype(self._order + _TYPES[int(kind[0])])
        size = int(count[0]) * dtype.itemsize
        data = held.tobytes()[:size] if size <= held.itemsize else self._file.read(int(held[0]), size)
        if len(data) < size:
            raise ValueError(f"tag {tag.name} lies beyond the end of the file")
        return np.frombuffer(data, dtype)

    def number(self, tag: Tag, otherwise: int = 0) -> int:
        """The first number of a tag; `otherwise` if the page lacks it."""
        values = self.values(tag)
        return otherwise if values is None or not len(values) else int(values[0])


def directories(file: TiffFileBytes) -> Iterator[Directory]:
    """The pages of a TIFF or BigTIFF in the order of the file. Raises ValueError if it is none, or damaged."""
    head = file.read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        raise ValueError("no TIFF file")
    version = _number(head[2:], np.dtype(order + "u2"))
    if version not in (_CLASSIC, _BIG):
        raise ValueError(f"a TIFF file of the unknown version {version}")
    word = np.dtype(order + ("u4" if version == _CLASSIC else "u8"))
    counter = np.dtype(order + ("u2" if version == _CLASSIC else "u8"))
    tag = np.dtype([("tag", order + "u2"), ("type", order + "u2"), ("count", word), ("value", word)])
    at, seen = _number(head[word.itemsize :], word), set[int]()
    while at:
        if at in seen:
            raise ValueError("its directories run in a circle")
        seen.add(at)
        count = _number(file.read(at, counter.itemsize), counter)
        if not 0 < count <= _MOST_TAGS:
            raise ValueError(f"a directory of {count} tags")
        stored = file.read(at + counter.itemsize, count * tag.itemsize + word.itemsize)
        at = _number(stored[count * tag.itemsize :], word)
        yield Directory(file, order, np.frombuffer(stored, tag, count))


def _number(data: bytes, dtype: np.dtype[Any]) -> int:
    if len(data) < dtype.itemsize:
        raise ValueError("the file ends within a directory")
    return int(np.frombuffer(data, dtype, 1)[0])
