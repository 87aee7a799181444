"""Plain images (PNG, JPEG, and TIFF that can only be decoded whole) as slides with a single level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from wsipipe.errors import SlideError
from wsipipe.slides.base import Opener, SlideInfo, resolve_mpp
from wsipipe.slides.fingerprint import fingerprint

PRIORITY = 40
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

MAX_PX = 2**28
"""Pixels of the largest image that is decoded: 0.8 GB as RGB. A header of a few bytes can declare any size."""


def sniff(file: Path) -> Opener | None:
    """ImageReader if the suffix is that of an image; a damaged image is then an error of this reader."""
    return ImageReader if file.suffix.lower() in SUFFIXES else None


class ImageReader:
    """An image in memory; needs an mpp override, as image files do not state their resolution reliably."""

    def __init__(
        self, path: Path, slide_id: str, mpp_override: tuple[float, float] | None = None, mpp_source: str = "override"
    ) -> None:
        mpp0, source = resolve_mpp(None, mpp_override, path, override_source=mpp_source)
        self._pixels = read_image(path)
        self.id = slide_id
        height, width = self._pixels.shape[:2]
        self.info = SlideInfo(
            path=str(path.resolve()),
            vendor="image",
            fingerprint=fingerprint(path),
            size_px0=(width, height),
            mpp0=mpp0,
            mpp_source=source,
            bounds_px0=(0, 0, width, height),
        )
        self.downsamples: tuple[float, ...] = (1.0,)

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.info.size_px0

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """RGB uint8 [h, w, 3], white outside the image."""
        (x, y), (w, h) = xy_px0, size_level_px
        out = np.full((h, w, 3), 255, np.uint8)
        height, width = self._pixels.shape[:2]
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if x2 > x1 and y2 > y1:
            out[y1 - y : y2 - y, x1 - x : x2 - x] = self._pixels[y1:y2, x1:x2]
        return out

    def tiles(self, level: int) -> None:
        """None: the image can only be decoded whole."""
        return

    def tile_px(self, level: int) -> tuple[int, int]:
        """(width, height) of the image: a single tile."""
        return self.info.size_px0

    def close(self) -> None:
        """Release the pixels."""
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB of an image file: uint8 [h, w, 3]; grey is repeated over the channels, alpha composited on white.

    Raises SlideError if the file is damaged, not 8-bit grey, RGB or RGBA, or larger than MAX_PX by its header.
    """
    try:
        raw = _decode_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _decode_picture(path)
    except (SlideError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds; all mean that the image is not readable
        raise SlideError(f"{path}: not a readable image ({' '.join(str(error).split())})") from None
    _check_kind(path, raw.dtype, raw.shape)
    if raw.ndim == 2:
        raw = raw[..., None]
    if raw.shape[2] == 4:
        return _on_white(raw)
    return np.ascontiguousarray(np.broadcast_to(raw, (*raw.shape[:2], 3)))


def _decode_tiff(path: Path) -> NDArray[Any]:
    with tifffile.TiffFile(path, _multifile=False) as tiff:  # never open other files that the header names
        page = tiff.pages[0]
        _check_kind(path, page.dtype, page.shape)
        _check_size(path, page.imagewidth, page.imagelength)
        return np.asarray(page.asarray())


def _decode_picture(path: Path) -> NDArray[Any]:
    data = path.read_bytes()
    jpeg = data.startswith(b"\xff\xd8")
    with (JpegImageFile if jpeg else PngImageFile)(path) as header:  # reads no pixels yet
        _check_size(path, *header.size)
        if header.mode == "CMYK":
            raise SlideError(f"{path}: found CMYK, a colour space for print; expected RGB; save it as RGB")
    return np.asarray(imagecodecs.jpeg8_decode(data) if jpeg else imagecodecs.png_decode(data))


def _check_kind(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    if dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise SlideError(f"{path}: found {dtype} {shape}; expected 8-bit grey, RGB or RGBA")


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PX:
        raise SlideError(
            f"{path}: found {width} x {height} px; expected at most {MAX_PX:,} px for an image without tiles; "
            "save it as a tiled TIFF with levels"
        )


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA composited on white: uint8 [h, w, 4] -> [h, w, 3]; in strips, as the 16-bit products triple the memory."""
    out = np.empty((*rgba.shape[:2], 3), np.uint8)
    for y in range(0, len(rgba), 256):
        alpha = rgba[y : y + 256, :, 3:].astype(np.uint16)
        out[y : y + 256] = (rgba[y : y + 256, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return out
