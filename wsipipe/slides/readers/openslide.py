"""Slides through OpenSlide: SVS, NDPI, MRXS, SCN, BIF, generic tiled TIFF, DICOM; the only user of openslide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.base import SlideInfo, resolve_mpp
from wsipipe.slides.fingerprint import fingerprint
from wsipipe.slides.tiff.tiles import TiffTiles, pyramid_tiles

log = logging.getLogger(__name__)

TILED_TIFF = ("aperio", "generic-tiff")
"""Vendors whose levels are plain TIFF pages: their tiles neither overlap nor have a place of their own."""

PROBED_TILES, AGREEING = 12, 2
"""Tiles tried at most, and those that must equal OpenSlide's pixels, before a level's tiles are decoded directly."""


def claims(path: Path) -> bool:
    """Whether OpenSlide knows the format of this file."""
    return openslide.OpenSlide.detect_format(str(path)) is not None


class OpenSlideReader:
    """One open slide, for any number of threads.

    An OpenSlide handle that met an error, in whichever thread, answers nothing any more, so it is replaced then.
    """

    def __init__(
        self, path: Path, slide_id: str, mpp_override: tuple[float, float] | None = None, mpp_source: str = "override"
    ) -> None:
        self._path = path
        self._handle = self._opened()
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
        self._rounded: tuple[float, ...] = self._handle.level_downsamples
        self._sizes_px: list[tuple[int, int]] = [(int(w), int(h)) for w, h in self._handle.level_dimensions]
        self.downsamples = tuple(_exact(d, size_px0, s) for d, s in zip(self._rounded, self._sizes_px, strict=True))
        self._tile_px = [
            tuple(int(properties.get(f"openslide.level[{i}].tile-{side}", 256)) for side in ("width", "height"))
            for i in range(len(self._sizes_px))
        ]
        self._ycbcr = self.info.vendor == "dicom" and self._is_unconverted()
        if self._ycbcr:
            log.warning("%s: tagged RGB but its pixels are YCbCr; converted on reading", path)
        self._tiles: dict[int, TiffTiles] = {}
        if self.info.vendor in TILED_TIFF:
            found = pyramid_tiles(path, self._sizes_px)
            verdicts = {level: self._agrees(level, tiles) for level, tiles in found.items()}
            usual = True in verdicts.values() and False not in verdicts.values()
            self._tiles = {n: tiles for n, tiles in found.items() if verdicts[n] or (verdicts[n] is None and usual)}

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        return self._sizes_px[level]

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 3]; transparent pixels (none scanned there) are laid on white."""
        rgba = self._rgba(xy_px0, level, size_level_px)
        if self._ycbcr:
            rgba = np.concatenate([_rgb_of_ycbcr(rgba[..., :3]), rgba[..., 3:]], axis=-1)
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        rest = 255 - alpha.astype(np.uint16)
        straight = rgba[..., :3].astype(np.uint16) * alpha
        return np.asarray((straight + 255 * rest + 127) // 255, np.uint8)

    def tiles(self, level: int) -> TiffTiles | None:
        """The tiles of a level of a tiled TIFF, where they decode to OpenSlide's own pixels."""
        return self._tiles.get(level)

    def tile_px(self, level: int) -> tuple[int, int]:
        """(width, height) of the tiles of a level; 256 where OpenSlide does not tell."""
        width, height = self._tile_px[level]
        return width, height

    def _opened(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self._path))
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{self._path}: OpenSlide cannot open it ({error})") from None

    def _region(self, at: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 4]; after an error, which may be another region's, read again with a handle of its own."""
        try:
            return np.asarray(self._handle.read_region(at, level, size_level_px), np.uint8)
        except openslide.OpenSlideError:
            fresh = self._opened()
        try:
            rgba = np.asarray(fresh.read_region(at, level, size_level_px), np.uint8)
        except openslide.OpenSlideError as error:
            fresh.close()
            raise SlideError(f"{self._path}: pixels at {at} of level {level} cannot be decoded ({error})") from None
        self._handle = fresh  # the old one is closed with its last user
        return rgba

    def _rgba(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 4] as OpenSlide gives it.

        OpenSlide divides the position by its own downsample and interpolates between pixels where the result is not
        whole, so it is given the position that its arithmetic maps to the pixel that is meant.
        """
        stretch = self._rounded[level] / self.downsamples[level]
        return self._region((round(xy_px0[0] * stretch), round(xy_px0[1] * stretch)), level, size_level_px)

    def _agrees(self, level: int, tiles: TiffTiles) -> bool | None:
        """Whether tiles decoded directly equal OpenSlide's pixels, on a few tiles spread over the level.

        None if there is no tile to compare: a level is then taken to be like the others of its file.

        Files are met whose tags and streams contradict each other; OpenSlide's reading of them is the one that holds.
        Where whole level-0 px do not reach a tile's corner to the pixel, OpenSlide interpolates: the means may then
        differ by as much as pixels that enter and leave at the borders can make.
        """
        down, (tw, th), (width, height) = self.downsamples[level], tiles.tile_px, tiles.size_px
        alike = 0
        for i in range(PROBED_TILES):
            row, col = (int(n * (0.5 + s * i) % n) for n, s in ((tiles.rows, 0.75488), (tiles.cols, 0.56984)))
            x, y = col * tw, row * th
            w, h = min(tw, width - x), min(th, height - y)
            try:
                mine = tiles.decode((row, col))[:h, :w]
                theirs = self._rgba((round(x * down), round(y * down)), level, (w, h))
            except SlideError:
                continue  # a bad tile says nothing of the others
            if theirs[..., 3].min() < 255:
                continue  # nor does one where OpenSlide has no pixels, as over missing tiles of a finer level
            off_px = max(self._misplaced_px(v, level) for v in (x, y))
            wrong = np.subtract(mine, theirs[..., :3], dtype=np.int16)
            if np.abs(wrong.mean((0, 1)) if off_px else wrong).max() > (1 + 510 * off_px / min(w, h) if off_px else 0):
                log.warning("%s: level %d is not what its TIFF tags say; read through OpenSlide", self._path, level)
                return False
            alike += 1
            if alike == AGREEING:
                return True
        return True if alike else None

    def _misplaced_px(self, position_px: int, level: int) -> float:
        """How far from a pixel of a level OpenSlide looks when `read` is asked for it."""
        at = round(round(position_px * self.downsamples[level]) * self._rounded[level] / self.downsamples[level])
        off = abs(at / self._rounded[level] - position_px)
        return off if off > 1e-6 else 0.0

    def _is_unconverted(self) -> bool:
        """Whether the brightest tenth of an overview has Y high and Cb, Cr at their neutral 128.

        DICOM files are met whose JPEG frames are YCbCr under the tag RGB; glass then reads as (240, 128, 128), a
        colour that no bright-field glass has.
        """
        try:
            rgb = np.asarray(self._handle.get_thumbnail((256, 256)).convert("RGB")).reshape(-1, 3)
        except openslide.OpenSlideError:
            self._handle = self._opened()
            return False
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


def _mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    try:
        return float(properties[openslide.PROPERTY_NAME_MPP_X]), float(properties[openslide.PROPERTY_NAME_MPP_Y])
    except (KeyError, ValueError):
        return None


def bounds_px0(properties: Mapping[str, str], size_px0: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x, y, w, h) of the part that holds pixels, cut to the slide; the whole slide where the properties do not say."""
    try:
        x, y, w, h = (int(properties[f"openslide.bounds-{side}"]) for side in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return (0, 0, *size_px0)
    x2, y2 = min(x + w, size_px0[0]), min(y + h, size_px0[1])
    x, y = max(0, x), max(0, y)
    return (x, y, x2 - x, y2 - y) if x2 > x and y2 > y else (0, 0, *size_px0)


def _exact(downsample: float, size_px0: tuple[int, int], size_level_px: tuple[int, int]) -> float:
    """Downsamples such as 4.0003, an artefact of rounded level sizes, as the whole number that is meant."""
    whole = round(downsample)
    explained = all(abs(n0 / whole - n) <= 1 for n0, n in zip(size_px0, size_level_px, strict=True))
    return float(whole) if explained and abs(downsample / whole - 1) < 0.05 else float(downsample)
