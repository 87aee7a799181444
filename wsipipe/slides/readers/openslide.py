"""Slides through OpenSlide: SVS, NDPI, MRXS, SCN, BIF, generic tiled TIFF, DICOM; the only user of openslide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.base import Opener, SlideInfo, resolve_mpp, whole_downsample
from wsipipe.slides.fingerprint import fingerprint
from wsipipe.slides.tiff.tiles import TiffTiles, pyramid_tiles

log = logging.getLogger(__name__)

PRIORITY = 20
SUFFIXES = (".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".tif", ".tiff", ".svslide", ".bif", ".czi")

TILED_TIFF = ("aperio", "generic-tiff")
"""Vendors whose levels are plain TIFF pages: their tiles lie in a regular grid and do not overlap."""

MAX_COMPARED_TILES, MIN_EQUAL_TILES = 12, 2
"""Before the tiles of a level are decoded directly: tiles compared with OpenSlide's pixels at most, and tiles that have
to be equal."""


def sniff(file: Path) -> Opener | None:
    """OpenSlideReader with the opened handle if OpenSlide knows the format. Raises SlideError if it cannot open it."""
    try:
        return partial(OpenSlideReader, handle=openslide.OpenSlide(str(file)))
    except openslide.OpenSlideUnsupportedFormatError:
        return None
    except (openslide.OpenSlideError, OSError) as error:
        raise _cannot_open(file, error) from None


class OpenSlideReader:
    """One open slide, thread-safe.

    An OpenSlide handle fails every call after its first error, in whichever thread that occurred, so it is replaced.
    """

    def __init__(
        self,
        path: Path,
        slide_id: str,
        mpp_override: tuple[float, float] | None = None,
        mpp_source: str = "override",
        handle: openslide.OpenSlide | None = None,
    ) -> None:
        self._path = path
        self._handle = handle or _open(path)
        self.id = slide_id
        properties = self._handle.properties
        size_px0 = self._handle.dimensions
        try:
            mpp0, source = resolve_mpp(_mpp(properties), mpp_override, path, override_source=mpp_source)
            self.info = SlideInfo(
                path=str(path.resolve()),
                vendor=str(properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")),
                fingerprint=fingerprint(path, str(properties.get(openslide.PROPERTY_NAME_QUICKHASH1, ""))),
                size_px0=size_px0,
                mpp0=mpp0,
                mpp_source=source,
                bounds_px0=bounds_px0(properties, size_px0),
            )
        except SlideError:
            self._handle.close()
            raise
        self._openslide_downsamples: tuple[float, ...] = self._handle.level_downsamples
        self._sizes_px: list[tuple[int, int]] = [(int(w), int(h)) for w, h in self._handle.level_dimensions]
        self.downsamples = tuple(
            whole_downsample(d, size_px0, s) for d, s in zip(self._openslide_downsamples, self._sizes_px, strict=True)
        )
        self._tile_px = [
            tuple(int(properties.get(f"openslide.level[{i}].tile-{side}", 256)) for side in ("width", "height"))
            for i in range(len(self._sizes_px))
        ]
        self._is_ycbcr = self.info.vendor == "dicom" and self._has_unconverted_ycbcr()
        if self._is_ycbcr:
            log.warning("%s: tagged RGB, but the pixels are YCbCr; converting them on reading", path)
        self._tiles = self._direct_tiles() if self.info.vendor in TILED_TIFF else {}

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        return self._sizes_px[level]

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """RGB uint8 [h, w, 3]; transparent pixels (not scanned) are composited on white."""
        rgba = self._rgba(xy_px0, level, size_level_px)
        if self._is_ycbcr:
            rgba = np.concatenate([_rgb_of_ycbcr(rgba[..., :3]), rgba[..., 3:]], axis=-1)
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        rest = 255 - alpha.astype(np.uint16)
        straight = rgba[..., :3].astype(np.uint16) * alpha
        return np.asarray((straight + 255 * rest + 127) // 255, np.uint8)

    def tiles(self, level: int) -> TiffTiles | None:
        """The tiles of a level of a tiled TIFF if they decode to OpenSlide's pixels, otherwise None."""
        return self._tiles.get(level)

    def tile_px(self, level: int) -> tuple[int, int]:
        """(width, height) of the tiles of a level; 256 if OpenSlide does not report it."""
        width, height = self._tile_px[level]
        return width, height

    def _region(self, at: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """RGBA uint8 [h, w, 4]. After an error, which another region may have caused, retries with a new handle."""
        try:
            return np.asarray(self._handle.read_region(at, level, size_level_px), np.uint8)
        except openslide.OpenSlideError:
            fresh = _open(self._path)
        try:
            rgba = np.asarray(fresh.read_region(at, level, size_level_px), np.uint8)
        except openslide.OpenSlideError as error:
            fresh.close()
            raise SlideError(f"{self._path}: pixels at {at} of level {level} cannot be decoded ({error})") from None
        self._handle = fresh  # the old handle is closed with its last user
        return rgba

    def _rgba(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """RGBA uint8 [h, w, 4] at a position in level-0 px by our own downsamples.

        OpenSlide divides the position by its own downsample and interpolates if the result is not whole. The position
        is therefore scaled so that OpenSlide's arithmetic arrives at the intended pixel.
        """
        stretch = self._openslide_downsamples[level] / self.downsamples[level]
        return self._region((round(xy_px0[0] * stretch), round(xy_px0[1] * stretch)), level, size_level_px)

    def _direct_tiles(self) -> dict[int, TiffTiles]:
        """Level -> tiles for the levels whose tiles decode to OpenSlide's pixels.

        A level without a comparable tile is included if every compared level of the file agrees.
        """
        found = pyramid_tiles(self._path, self._sizes_px)
        agrees = {level: self._agrees(level, tiles) for level, tiles in found.items()}
        others_agree = True in agrees.values() and False not in agrees.values()
        return {n: tiles for n, tiles in found.items() if agrees[n] or (agrees[n] is None and others_agree)}

    def _agrees(self, level: int, tiles: TiffTiles) -> bool | None:
        """Whether tiles decoded directly equal OpenSlide's pixels, on a few tiles spread over the level.

        None if no tile can be compared. Some files have tags that contradict their JPEG streams; OpenSlide's reading
        is then the reference. Where no whole level-0 position maps exactly to the corner of a tile, OpenSlide
        interpolates: the means may then differ by as much as the pixels that enter and leave at the borders allow.
        """
        down, (tw, th), (width, height) = self.downsamples[level], tiles.tile_px, tiles.size_px
        equal = 0
        for i in range(MAX_COMPARED_TILES):
            row, col = (int(n * (0.5 + s * i) % n) for n, s in ((tiles.rows, 0.75488), (tiles.cols, 0.56984)))
            x, y = col * tw, row * th
            w, h = min(tw, width - x), min(th, height - y)
            try:
                direct = tiles.decode((row, col))[:h, :w]
                reference = self._rgba((round(x * down), round(y * down)), level, (w, h))
            except SlideError:
                continue  # a bad tile says nothing about the others
            if reference[..., 3].min() < 255:
                continue  # nor does a tile without pixels in OpenSlide, as above missing tiles of a finer level
            off_px = max(self._offset_px(v, level) for v in (x, y))
            wrong = np.subtract(direct, reference[..., :3], dtype=np.int16)
            if np.abs(wrong.mean((0, 1)) if off_px else wrong).max() > (1 + 510 * off_px / min(w, h) if off_px else 0):
                log.warning("%s: level %d contradicts its TIFF tags; reading it through OpenSlide", self._path, level)
                return False
            equal += 1
            if equal == MIN_EQUAL_TILES:
                return True
        return True if equal else None

    def _offset_px(self, position_px: int, level: int) -> float:
        """Distance from a pixel of a level to the position that OpenSlide reads when `_rgba` asks for that pixel."""
        openslide_downsample = self._openslide_downsamples[level]
        at = round(round(position_px * self.downsamples[level]) * openslide_downsample / self.downsamples[level])
        off = abs(at / openslide_downsample - position_px)
        return off if off > 1e-6 else 0.0

    def _has_unconverted_ycbcr(self) -> bool:
        """Whether the brightest tenth of a thumbnail has high Y and neutral Cb and Cr (128).

        Some DICOM files tag YCbCr JPEG frames as RGB. Glass then reads as (240, 128, 128), a colour that no
        bright-field glass has.
        """
        try:
            rgb = np.asarray(self._handle.get_thumbnail((256, 256)).convert("RGB")).reshape(-1, 3)
        except openslide.OpenSlideError:
            self._handle = _open(self._path)
            return False
        bright = np.median(rgb[rgb[:, 0] >= np.quantile(rgb[:, 0], 0.9)], axis=0)
        return bool(bright[0] > 180 and np.all(np.abs(bright[1:] - 128) < 8))

    def close(self) -> None:
        """Release the file."""
        self._handle.close()


def _open(path: Path) -> openslide.OpenSlide:
    """A handle of the slide. Raises SlideError."""
    try:
        return openslide.OpenSlide(str(path))
    except (openslide.OpenSlideError, OSError) as error:
        raise _cannot_open(path, error) from None


def _cannot_open(path: Path, error: Exception) -> SlideError:
    return SlideError(f"{path}: OpenSlide cannot open it ({error})")


def _rgb_of_ycbcr(ycc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """JPEG's full-range YCbCr (ITU-R BT.601) to RGB: uint8 [h, w, 3] both."""
    y, cb, cr = (ycc[..., i].astype(np.float32) - (0, 128, 128)[i] for i in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, 255), np.uint8)


def _mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """(x, y) um/px of level 0; None if the properties lack it."""
    try:
        return float(properties[openslide.PROPERTY_NAME_MPP_X]), float(properties[openslide.PROPERTY_NAME_MPP_Y])
    except (KeyError, ValueError):
        return None


def bounds_px0(properties: Mapping[str, str], size_px0: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x, y, w, h) of the scanned area, clipped to the slide; the whole slide if the properties lack it."""
    try:
        x, y, w, h = (int(properties[f"openslide.bounds-{side}"]) for side in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return (0, 0, *size_px0)
    x2, y2 = min(x + w, size_px0[0]), min(y + h, size_px0[1])
    x, y = max(0, x), max(0, y)
    return (x, y, x2 - x, y2 - y) if x2 > x and y2 > y else (0, 0, *size_px0)
