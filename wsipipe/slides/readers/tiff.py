"""TIFF pyramids that OpenSlide does not read: OME-TIFF, and RGB images in strips or in deflated tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.base import Opener, SlideInfo, resolve_mpp, whole_downsample
from wsipipe.slides.fingerprint import fingerprint
from wsipipe.slides.level import LevelPixels
from wsipipe.slides.tiff.file import TiffFileBytes
from wsipipe.slides.tiff.pages import name_of, parse_page
from wsipipe.slides.tiff.tiles import TiffTiles

PRIORITY = 30
SUFFIXES = (".tif", ".tiff")

_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM_OF_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre


@dataclass(frozen=True)
class Pyramid:
    """The levels of a TIFF, finest first, and its resolution: (x, y) um/px of level 0 and the tags that state it."""

    levels: tuple[TiffTiles, ...]
    mpp: tuple[float, float] | None
    mpp_source: str


def sniff(file: Path) -> Opener | None:
    """TiffReader if the first page is 8-bit RGB in a compression that is decoded tile by tile or strip by strip."""
    try:
        tiff = tifffile.TiffFile(file, _multifile=False)
    except Exception:  # noqa: BLE001 - tifffile raises many kinds; none of them is a readable TIFF
        return None
    with tiff:
        try:
            readable = TiffTiles.of(TiffFileBytes(file), parse_page(tiff.pages[0])) is not None
        except Exception:  # noqa: BLE001 - as above
            return None
        return partial(TiffReader, pyramid=_pyramid(file, tiff)) if readable else None


class TiffReader:
    """One open TIFF, thread-safe; its levels are the pages or SubIFDs of its first series."""

    def __init__(
        self,
        path: Path,
        slide_id: str,
        mpp_override: tuple[float, float] | None = None,
        mpp_source: str = "override",
        pyramid: Pyramid | None = None,
    ) -> None:
        pyramid = pyramid or read_pyramid(path)
        mpp0, source = resolve_mpp(pyramid.mpp, mpp_override, path, pyramid.mpp_source, mpp_source)
        self.id = slide_id
        self._levels = pyramid.levels
        size_px0 = self._levels[0].size_px
        self.downsamples = tuple(_downsample(size_px0, level.size_px) for level in self._levels)
        self.info = SlideInfo(
            path=str(path.resolve()),
            vendor="tiff",
            fingerprint=fingerprint(path),
            size_px0=size_px0,
            mpp0=mpp0,
            mpp_source=source,
            bounds_px0=(0, 0, *size_px0),
        )

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        return self._levels[level].size_px

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """RGB uint8 [h, w, 3], white outside the image. Raises SlideError if a tile cannot be decoded."""
        x, y = (round(v / self.downsamples[level]) for v in xy_px0)
        rgb, bad = LevelPixels(self, level).read((x, y, *size_level_px))
        if bad:
            raise SlideError(next(iter(bad.values())))
        return rgb

    def tiles(self, level: int) -> TiffTiles:
        """The tiles of a level."""
        return self._levels[level]

    def tile_px(self, level: int) -> tuple[int, int]:
        """(width, height) of the tiles of a level."""
        return self._levels[level].tile_px

    def close(self) -> None:
        """Nothing to do: the file is closed when its last user is garbage-collected."""


def read_pyramid(path: Path) -> Pyramid:
    """The levels and the resolution of a TIFF. Raises SlideError if it is damaged or not 8-bit RGB."""
    try:
        tiff = tifffile.TiffFile(path, _multifile=False)  # never open other files that the header names
    except Exception as error:  # noqa: BLE001 - tifffile raises many kinds; all mean that the file is damaged
        raise _damaged(path, error) from None
    with tiff:
        return _pyramid(path, tiff)


def _pyramid(path: Path, tiff: Any) -> Pyramid:
    """As `read_pyramid`, from the tifffile.TiffFile of an open file."""
    file = TiffFileBytes(path)
    try:
        pages = [level.pages[0] for level in tiff.series[0].levels]
        first, *coarser = (TiffTiles.of(file, parse_page(page)) for page in pages)
        mpp, source = _mpp(tiff)
    except Exception as error:  # noqa: BLE001 - tifffile raises many kinds; all mean that the file is damaged
        raise _damaged(path, error) from None
    if first is None:
        p = pages[0]
        kind = f"{p.dtype} x {p.samplesperpixel}, {name_of(p.compression)}, {name_of(p.photometric)}"
        raise SlideError(f"{path}: found {kind}; expected 8-bit RGB; export it as an RGB TIFF")
    return Pyramid((first, *(tiles for tiles in coarser if tiles)), mpp, source)


def _damaged(path: Path, error: Exception) -> SlideError:
    return SlideError(f"{path}: not a readable TIFF ({' '.join(str(error).split())})")


def _downsample(size_px0: tuple[int, int], size_px: tuple[int, int]) -> float:
    """Level-0 px per px of a level of this (width, height)."""
    return whole_downsample(size_px0[0] / size_px[0], size_px0, size_px)


def _mpp(tiff: Any) -> tuple[tuple[float, float] | None, str]:
    """(x, y) um/px of the first image and its source: the OME-XML if there is one, otherwise the resolution tags."""
    try:
        if tiff.is_ome:
            image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
            pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
            sizes = (float(pixels[f"PhysicalSize{a}"]) * _UM[pixels.get(f"PhysicalSize{a}Unit", "µm")] for a in "XY")
            return tuple(sizes), "ome"  # type: ignore[return-value]
        page = tiff.pages[0]
        um = _UM_OF_RESOLUTION_UNIT[int(page.tags["ResolutionUnit"].value)]
        x, y = (page.tags[f"{a}Resolution"].value for a in "XY")
        return (um * x[1] / x[0], um * y[1] / y[0]), "tiff tags"
    except (KeyError, ValueError, TypeError, ZeroDivisionError, ParseError):
        return None, ""
