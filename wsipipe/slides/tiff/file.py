"""The bytes of a TIFF file and its directories, read lazily."""

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
"""TIFF type -> numpy type, for integers and text; fractions are never read here."""

_CLASSIC, _BIG = 42, 43
_MAX_TAGS = 4096
"""Tags of one directory; more indicate damage."""


class Tag(IntEnum):
    """Tags of a page, numbered as in TIFF 6.0 and its technical notes; the depths are extensions of libtiff."""

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
    """A file read by position, so that threads can share it; closed when its last user is garbage-collected."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end of the file. Raises SlideError."""
        try:
            return os.pread(self._file.fileno(), max(0, min(size, self.size - offset)), min(offset, self.size))
        except OSError as error:
            raise SlideError(f"{self.path}: reading at byte {offset} failed ({error.strerror})") from None


class Directory:
    """The tags of one page. Values are read on demand: the offsets of 150,000 tiles become one array."""

    def __init__(self, file: TiffFileBytes, order: str, entries: NDArray[np.void]) -> None:
        self._file, self._order = file, order
        self._rows = {int(tag): row for row, tag in enumerate(entries["tag"])}
        self._entries = entries

    def __contains__(self, tag: Tag) -> bool:
        return tag in self._rows

    def values(self, tag: Tag) -> NDArray[Any] | None:
        """The values of a tag: a one-dimensional array of numbers, or of the bytes of a text; None if it is absent.

        Raises ValueError if the values lie outside the file or are of another type.
        """
        if tag not in self:
            return None
        row = self._rows[tag]
        kind, count, value = (self._entries[field][row : row + 1] for field in ("type", "count", "value"))
        if int(kind[0]) not in _TYPES:
            raise ValueError(f"tag {tag.name} has type {kind[0]}; expected integers or text")
        dtype = np.dtype(self._order + _TYPES[int(kind[0])])
        size = int(count[0]) * dtype.itemsize
        data = value.tobytes()[:size] if size <= value.itemsize else self._file.read(int(value[0]), size)
        if len(data) < size:
            raise ValueError(f"tag {tag.name} lies beyond the end of the file")
        return np.frombuffer(data, dtype)

    def number(self, tag: Tag, default: int = 0) -> int:
        """The first number of a tag; `default` if the page lacks the tag."""
        values = self.values(tag)
        return default if values is None or not len(values) else int(values[0])


def directories(file: TiffFileBytes) -> Iterator[Directory]:
    """The pages of a TIFF or BigTIFF in file order. Raises ValueError if it is not a TIFF, or is damaged."""
    head = file.read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        raise ValueError("not a TIFF file")
    version = _number(head[2:], np.dtype(order + "u2"))
    if version not in (_CLASSIC, _BIG):
        raise ValueError(f"unknown TIFF version {version}")
    word = np.dtype(order + ("u4" if version == _CLASSIC else "u8"))
    counter = np.dtype(order + ("u2" if version == _CLASSIC else "u8"))
    tag = np.dtype([("tag", order + "u2"), ("type", order + "u2"), ("count", word), ("value", word)])
    at, seen = _number(head[word.itemsize :], word), set[int]()
    while at:
        if at in seen:
            raise ValueError("its directories form a cycle")
        seen.add(at)
        count = _number(file.read(at, counter.itemsize), counter)
        if not 0 < count <= _MAX_TAGS:
            raise ValueError(f"a directory of {count} tags")
        stored = file.read(at + counter.itemsize, count * tag.itemsize + word.itemsize)
        at = _number(stored[count * tag.itemsize :], word)
        yield Directory(file, order, np.frombuffer(stored, tag, count))


def _number(data: bytes, dtype: np.dtype[Any]) -> int:
    if len(data) < dtype.itemsize:
        raise ValueError("the file ends within a directory")
    return int(np.frombuffer(data, dtype, 1)[0])
