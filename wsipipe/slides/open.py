"""Open a slide with the first reader that knows its format."""

from __future__ import annotations

from pathlib import Path

from wsipipe.errors import SlideError
from wsipipe.slides.base import Slide
from wsipipe.slides.readers import find_opener


def open_slide(
    path: Path, slide_id: str, mpp_override: float | tuple[float, float] = 0.0, mpp_source: str = "override"
) -> Slide:
    """Open one slide: a file, or a folder with the DICOM files of one slide.

    `mpp_override` (um/px of level 0; one number or (x, y)) replaces what the file says, 0 trusts the file;
    `mpp_source` is recorded as its origin. Raises SlideError if no reader can open the slide, or if its resolution is
    missing or implausible.
    """
    if not path.exists():
        raise SlideError(f"{path}: no such file or folder")
    override = mpp_override if isinstance(mpp_override, tuple) else (mpp_override, mpp_override)
    file = _first_dicom(path) if path.is_dir() else path
    try:
        return find_opener(file)(file, slide_id, override if any(override) else None, mpp_source)
    except (SlideError, MemoryError):
        raise
    except Exception as error:  # parsers raise nearly anything on a damaged header; only this slide fails
        raise SlideError(f"{path}: it cannot be opened ({type(error).__name__}: {error})") from error


def _first_dicom(folder: Path) -> Path:
    """The first DICOM file of a folder; OpenSlide finds the other files of its series."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")
    if not files:
        raise SlideError(f"{folder}: the folder contains no DICOM files")
    return files[0]
