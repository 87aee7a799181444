"""Slides through OpenSlide: SVS, NDPI, MRXS, SCN, BIF, generic tiled TIFF, DICOM; the only user of openslide."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.base import SlideInfo, resolve_mpp

log = logging.getLogger(__name__)


def claims(path: Path) -> bool:
    """Whether OpenSlide knows the format of this file."""
    return openslide.OpenSlide.detect_format(str(path)) is not None


class OpenSlideReader:
    """One open slide; OpenSlide's handles may be used by several threads."""

    def __init__(self, path: Path, slide_id: str, mpp_override: float) -> None:
        try:
            self._handle = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{path}: OpenSlide cannot open it ({error})") from None
        self.id = slide_id
        self._path = path
        try:
            properties = self._handle.properties
            mpp0, source = resolve_mpp(_mpp(properties), mpp_override, path)
            self.info = SlideInfo(
                path=str(path.resolve()),
                vendor=str(properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")),
                fingerprint=_fingerprint(path, properties),
                size_px0=self._handle.dimensions,
                mpp0=mpp0,
                mpp_source=source,
            )
        except SlideError:
            self._handle.close()
            raise
        self._ycbcr = False
        if self.info.vendor == "dicom":
            self._ycbcr = self._is_unconverted()
            if self._ycbcr:
                log.warning("%s: tagged RGB but its pixels are YCbCr; converted on reading", path)
        self._rounded: tuple[float, ...] = self._handle.level_downsamples
        sizes = self._handle.level_dimensions
        self.downsamples = tuple(_exact(d, sizes[0], s) for d, s in zip(self._rounded, sizes, strict=True))

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        w, h = self._handle.level_dimensions[level]
        return int(w), int(h)

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 3]; transparent pixels (none scanned there) are laid on white.

        OpenSlide divides the position by its own downsample and interpolates between pixels where the result is not
        whole, so it is given the position that its arithmetic maps to the pixel that is meant.
        """
        stretch = self._rounded[level] / self.downsamples[level]
        at = (round(xy_px0[0] * stretch), round(xy_px0[1] * stretch))
        try:
            rgba = np.asarray(self._handle.read_region(at, level, size_level_px), np.uint8)
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self._path}: pixels at {xy_px0} of level {level} cannot be decoded ({error})") from None
        if self._ycbcr:
            rgba = np.concatenate([_rgb_of_ycbcr(rgba[..., :3]), rgba[..., 3:]], axis=-1)
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        rest = 255 - alpha.astype(np.uint16)
        straight = rgba[..., :3].astype(np.uint16) * alpha
        return np.asarray((straight + 255 * rest + 127) // 255, np.uint8)

    def _is_unconverted(self) -> bool:
        """Whether the brightest tenth of an overview has Y high and Cb, Cr at their neutral 128.

        DICOM files are met whose JPEG frames are YCbCr under the tag RGB; glass then reads as (240, 128, 128), a
        colour that no bright-field glass has.
        """
        rgb = np.asarray(self._handle.get_thumbnail((256, 256)).convert("RGB")).reshape(-1, 3)
        bright = np.median(rgb[rgb[:, 0] >= np.quantile(rgb[:, 0], 0.9)], axis=0)
        return bool(bright[0] > 180 and np.all(np.abs(bright[1:] - 128) < 8))

    def close(self) -> None:
        """Free the file."""
        self._handle.close()


def _rgb_of_ycbcr(ycc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """JPEG's full-range YCbCr (ITU-R BT.601) as RGB: uint8 [h, w, 3] both."""
    y, cb, cr = (ycc[..., i].astype(np.float32) - (0, 128, 128)[i] for i in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, 255), np.uint8)


def _mpp(properties: object) -> tuple[float, float] | None:
    get = properties.get  # type: ignore[attr-defined]
    try:
        return float(get(openslide.PROPERTY_NAME_MPP_X)), float(get(openslide.PROPERTY_NAME_MPP_Y))
    except (TypeError, ValueError):
        return None


def _fingerprint(path: Path, properties: object) -> str:
    """OpenSlide's quickhash (headers and a small level) with the length of the file."""
    quick = properties.get(openslide.PROPERTY_NAME_QUICKHASH1) or path.name  # type: ignore[attr-defined]
    return hashlib.sha256(f"{quick}:{path.stat().st_size}".encode()).hexdigest()[:32]


def _exact(downsample: float, size_px0: tuple[int, int], size_level_px: tuple[int, int]) -> float:
    """Downsamples such as 4.0003, an artefact of rounded level sizes, as the whole number that is meant."""
    whole = round(downsample)
    explained = all(abs(n0 / whole - n) <= 1 for n0, n in zip(size_px0, size_level_px, strict=True))
    return float(whole) if explained and abs(downsample / whole - 1) < 0.05 else float(downsample)
