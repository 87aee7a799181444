"""Images without tiles: refused by their header if they are too large or of another colour space."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from wsipipe.errors import SlideError
from wsipipe.slides import open_slide


def png_of(width: int, height: int) -> bytes:
    """A PNG that declares this size and holds no pixels."""
    small = imagecodecs.png_encode(np.zeros((1, 1), np.uint8))
    ihdr = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + small[33:]


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that declares this size and holds the pixels of a small one."""
    small = imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8))
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]


@pytest.mark.parametrize(("name", "data"), [
    ("a.png", png_of(60_000, 60_000)), ("a.jpg", jpeg_of(60_000, 60_000)), ("b.png", png_of(2**14 + 1, 2**14)),
])  # fmt: skip
def test_an_image_that_declares_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SlideError, match=r"px; expected at most 268,435,456 px for an image without tiles; save"):
        open_slide(tmp_path / name, "a", 0.5)


def test_a_tiff_that_declares_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((16, 16), np.uint8), rowsperstrip=16)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            where = tiff.pages[0].tags[tag].valueoffset
            data[where : where + 4] = struct.pack("<I", 30_000)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(SlideError, match=r"found 30000 x 30000 px; expected at most"):
        open_slide(tmp_path / "a.tif", "a", 0.5)


def test_cmyk_is_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16)).save(tmp_path / "a.jpg")
    with pytest.raises(SlideError, match="found CMYK, a colour space for print; expected RGB; save it as RGB"):
        open_slide(tmp_path / "a.jpg", "a", 0.5)
