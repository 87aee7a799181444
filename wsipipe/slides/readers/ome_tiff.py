"""OME-TIFF. Precedes OpenSlide, which would read a tiled OME-TIFF as a TIFF with a single level."""

from __future__ import annotations

from pathlib import Path

from wsipipe.errors import SlideError
from wsipipe.slides.base import Opener
from wsipipe.slides.readers.tiff import TiffReader
from wsipipe.slides.tiff.file import Tag, TiffFileBytes, directories

PRIORITY = 10
SUFFIXES = (".tif", ".tiff")


def sniff(file: Path) -> Opener | None:
    """TiffReader if the first page of a TIFF contains OME-XML, which describes levels and resolution."""
    try:
        text = next(directories(TiffFileBytes(file))).values(Tag.IMAGE_DESCRIPTION)
    except (SlideError, OSError, ValueError, StopIteration):
        return None
    return TiffReader if text is not None and text.tobytes().rstrip(b"\0 \r\n\t").endswith(b"OME>") else None
