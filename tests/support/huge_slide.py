"""Write a slide of any size in a second: its tiles are few, and the file points to each of them many times."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray

TILE = 256
GLASS_GREY, PINK = 243, (214, 150, 190)


def write_huge(path: Path, side_px: int, mpp: float = 0.25, kinds: int = 8) -> None:
    """A square Aperio-like BigTIFF with levels 1, 4, 16, 64 and a disc of tissue of 0.3 times its side."""
    rng = np.random.default_rng(0)
    tiles = [_jpeg(np.full((TILE, TILE, 3), GLASS_GREY, np.uint8))]
    for _ in range(kinds):
        noise = rng.normal(0, 22, (TILE, TILE, 1))
        tiles.append(_jpeg(np.clip(np.array(PINK) + noise, 0, 255).astype(np.uint8)))
    with path.open("wb") as f:
        f.write(b"II" + struct.pack("<HHHQ", 43, 8, 0, 0))
        starts = []
        for tile in tiles:
            starts.append(f.tell())
            f.write(tile)
        lengths = [len(t) for t in tiles]
        link = 8  # where the offset of the next directory is written
        for factor in (1, 4, 16, 64):
            size = side_px // factor
            which = _layout(size, kinds)
            text = (
                f"Aperio Image Library v12.0.15\r\n{size}x{size} ({TILE}x{TILE}) JPEG/RGB Q=80|AppMag = 40|MPP = {mpp}"
            )
            arrays = {324: np.array(starts, "<u8")[which], 325: np.array(lengths, "<u8")[which]}
            link = _directory(f, link, size, text.encode() + b"\0", arrays)


def _layout(size: int, kinds: int) -> NDArray[np.intp]:
    """The tile that stands at each place of a level, row-major: 0 glass, else tissue."""
    n = -(-size // TILE)
    y, x = (np.mgrid[0:n, 0:n] + 0.5) * TILE / size - 0.5
    tissue = np.hypot(y, x) < 0.3
    row, col = np.mgrid[0:n, 0:n]
    return np.where(tissue, 1 + (row * 7 + col * 3) % kinds, 0).ravel()


def _directory(f: BinaryIO, link: int, size: int, text: bytes, arrays: dict[int, NDArray[np.uint64]]) -> int:
    places = {}
    for tag, values in arrays.items():
        places[tag] = f.tell() if len(values) > 1 else int(values[0])  # a single value stands in the directory itself
        f.write(values.tobytes())
    places[270] = f.tell()
    f.write(text)
    n = len(arrays[324])
    inline = [
        (254, 4, 1, 0), (256, 4, 1, size), (257, 4, 1, size), (258, 3, 3, 8 | 8 << 16 | 8 << 32), (259, 3, 1, 7),
        (262, 3, 1, 6), (270, 2, len(text), places[270]), (277, 3, 1, 3), (284, 3, 1, 1), (322, 3, 1, TILE),
        (323, 3, 1, TILE), (324, 16, n, places[324]), (325, 16, n, places[325]), (530, 3, 2, 2 | 2 << 16),
    ]  # fmt: skip
    start = f.tell()
    f.write(struct.pack("<Q", len(inline)))
    for tag, kind, count, value in inline:
        f.write(struct.pack("<HHQQ", tag, kind, count, value))
    next_link = f.tell()
    f.write(struct.pack("<Q", 0))
    f.seek(link)
    f.write(struct.pack("<Q", start))
    f.seek(0, 2)
    return next_link


def _jpeg(rgb: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(rgb, level=80, subsampling="420"))
