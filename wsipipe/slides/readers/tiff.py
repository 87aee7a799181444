"""TIFF files that OpenSlide does not read as they are meant: OME-TIFF pyramids, striped or deflated RGB images."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slides.base import SlideInfo, resolve_mpp
from wsipipe.slides.fingerprint import fingerprint
from wsipipe.slides.level import LevelPixels
from wsipipe.slides.tiff.file import Tag, TiffFileBytes, directories
from wsipipe.slides.tiff.pages import any_page, name_of
from wsipipe.slides.tiff.tiles import TiffTiles

_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM_OF_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre


def is_ome(path: Path) -> bool:
    """Whether this is an OME-TIFF, whose levels and resolution its OME-XML tells."""
    try:
        text = next(directories(TiffFileBytes(path))).values(Tag.IMAGE_DESCRIPTION)
    except (SlideError, OSError, ValueError, StopIteration):
        return False
    return text is not None and text.tobytes().rstrip(b"\0 \r\n\t").endswith(b"OME>")


def claims(path: Path) -> bool:
    """Whether the first image of this file is 8-bit RGB in a compression that can be decoded piece by piece."""
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            return TiffTiles.of(TiffFileBytes(path), any_page(tiff.pages[0])) is not None
    except Exception:  # noqa: BLE001 - tifffile raises many kinds; none of them is a readable TIFF
        return False


class TiffReader:
    """One open TIFF, for any number of threads; its levels are the pages or SubIFDs of its first series."""

    def __init__(
        self, path: Path, slide_id: str, mpp_override: tuple[float, float] | None = None, mpp_source: str = "override"
    ) -> None:
        self.id = slide_id
        self._path = path
        file = TiffFileBytes(path)
        try:
            with tifffile.TiffFile(path, _multifile=False) as tiff:  # never follow names of other files
                pages = [level.pages[0] for level in tiff.series[0].levels]
                first, *coarser = (TiffTiles.of(file, any_page(page)) for page in pages)
                found, source = _mpp(tiff)
        except Exception as error:  # noqa: BLE001 - tifffile raises many kinds; all mean that the file is damaged
            raise SlideError(f"{path}: not a readable TIFF ({' '.join(str(error).split())})") from None
        if first is None:
            p = pages[0]
            found_kind = f"{p.dtype} x {p.samplesperpixel}, {name_of(p.compression)}, {name_of(p.photometric)}"
            raise SlideError(f"{path}: found {found_kind}; expected 8-bit RGB; export it as an RGB TIFF")
        mpp0, source = resolve_mpp(found, mpp_override, path, source, mpp_source)
        self._tiles = (first, *(tiles for tiles in coarser if tiles))
        size_px0 = first.size_px
        self.downsamples = tuple(_downsample(size_px0, t.size_px) for t in self._tiles)
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
        return self._tiles[level].size_px

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 3]; white outside the image. Raises SlideError if a tile cannot be decoded."""
        x, y = (round(v / self.downsamples[level]) for v in xy_px0)
        rgb, bad = LevelPixels(self, level).read((x, y, *size_level_px))
        if bad:
            raise SlideError(next(iter(bad.values())))
        return rgb

    def tiles(self, level: int) -> TiffTiles:
        """The tiles of a level."""
        return self._tiles[level]

    def tile_px(self, level: int) -> tuple[int, int]:
        """(width, height) of the tiles of a level."""
        return self._tiles[level].tile_px

    def close(self) -> None:
        """The file is closed with its last reader."""


def _downsample(size_px0: tuple[int, int], size_px: tuple[int, int]) -> float:
    """Level-0 px per px of a level: the whole number that explains both sides, where one does."""
    ratio = size_px0[0] / size_px[0]
    whole = round(ratio)
    explained = all(abs(n0 / whole - n) <= 1 for n0, n in zip(size_px0, size_px, strict=True))
    return float(whole) if explained and abs(ratio / whole - 1) < 0.05 else ratio


def _mpp(tiff: Any) -> tuple[tuple[float, float] | None, str]:
    """(x, y) um/px of the first image and what says so: the OME-XML where there is one, else the resolution tags."""
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
