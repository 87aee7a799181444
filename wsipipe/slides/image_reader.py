"""Plain images (PNG, JPEG, untiled TIFF) as slides of one level."""

from __future__ import annotations

import hashlib
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.base import SlideInfo, resolve_mpp

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


class ImageReader:
    """An image in memory; its resolution has to be given, as such files do not say it reliably."""

    def __init__(self, path: Path, slide_id: str, mpp_override: float) -> None:
        mpp0, source = resolve_mpp(None, mpp_override, path)
        self._pixels = read_image(path)
        self.id = slide_id
        self.info = SlideInfo(
            path=str(path.resolve()),
            vendor="image",
            fingerprint=hashlib.sha256(path.read_bytes()).hexdigest()[:32],
            size_px0=(self._pixels.shape[1], self._pixels.shape[0]),
            mpp0=mpp0,
            mpp_source=source,
        )
        self.downsamples: tuple[float, ...] = (1.0,)

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.info.size_px0

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 3]; white outside the image."""
        (x, y), (w, h) = xy_px0, size_level_px
        out = np.full((h, w, 3), 255, np.uint8)
        height, width = self._pixels.shape[:2]
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if x2 > x1 and y2 > y1:
            out[y1 - y : y2 - y, x1 - x : x2 - x] = self._pixels[y1:y2, x1:x2]
        return out

    def close(self) -> None:
        """Free the pixels."""
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB of an image file: uint8 [h, w, 3]; grey is repeated, alpha laid on white."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path, _multifile=False) as tiff:  # never follow names of other files
                raw = tiff.pages[0].asarray()
        else:
            raw = imagecodecs.imread(path)
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds; all mean that this is no readable image
        raise SlideError(f"{path}: not a readable image ({' '.join(str(error).split())})") from None
    raw = np.asarray(raw)
    if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[2] not in (1, 3, 4)):
        raise SlideError(f"{path}: found {raw.dtype} {raw.shape}; expected 8-bit grey, RGB or RGBA")
    if raw.ndim == 2:
        raw = raw[..., None]
    if raw.shape[2] == 4:
        alpha = raw[..., 3:].astype(np.uint16)
        raw = ((raw[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(raw, (*raw.shape[:2], 3)))
