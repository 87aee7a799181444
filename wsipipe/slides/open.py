"""Find slides in the paths that a user gives, and open each with the reader that knows its format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsipipe.errors import ConfigError, SlideError
from wsipipe.labels import slide_id_of
from wsipipe.slides.base import Slide

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (
    ".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".tif", ".tiff", ".svslide", ".bif", ".czi", *PICTURES,
)  # fmt: skip


def find_slides(paths: Sequence[Path]) -> dict[str, Path]:
    """Slide id -> path for files, DICOM folders and folders of slides.

    In a folder, PNG and JPEG are slides only where nothing else is: beside slides they are masks and thumbnails.
    Raises ConfigError for a path that does not exist, a folder without slides, and two slides of one id.
    """
    found: dict[str, Path] = {}
    for given in paths:
        if not given.exists():
            raise ConfigError(f"{given}: no such file or folder")
        for path in _expand(given):
            slide_id = slide_id_of(path.name if path.is_dir() else path.name.removesuffix(path.suffix))
            if slide_id in found and found[slide_id].resolve() != path.resolve():
                raise ConfigError(
                    f"{found[slide_id]} and {path} would both be called {slide_id}; rename one or tile them apart"
                )
            found[slide_id] = path
    return found


def _expand(given: Path) -> list[Path]:
    if given.is_file() or _is_dicom(given):
        return [given]
    shown = [p for p in sorted(given.iterdir()) if not p.name.startswith(".")]
    inside = [p for p in shown if (p.is_file() and p.suffix.lower() in SUFFIXES) or _is_dicom(p)]
    if not inside:
        raise ConfigError(f"{given}: no slides in this folder; known are {', '.join(SUFFIXES)} and folders of .dcm")
    return [p for p in inside if p.suffix.lower() not in PICTURES] or inside


def _is_dicom(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() == ".dcm" for p in path.iterdir())


def open_slide(path: Path, slide_id: str, mpp_override: float = 0.0) -> Slide:
    """Open one slide. `mpp_override` (um/px of level 0) replaces what the file says; 0 trusts the file.

    Raises SlideError if nothing can open it or its resolution is missing or absurd.
    """
    from wsipipe.slides import image_reader, openslide_reader

    file = path
    if path.is_dir():
        parts = sorted(p for p in path.iterdir() if p.suffix.lower() == ".dcm")
        if not parts:
            raise SlideError(f"{path}: a folder without DICOM files")
        file = parts[0]
    if openslide_reader.claims(file):
        return openslide_reader.OpenSlideReader(file, slide_id, mpp_override)
    if file.suffix.lower() in image_reader.SUFFIXES:
        return image_reader.ImageReader(file, slide_id, mpp_override)
    raise SlideError(f"{path}: neither OpenSlide nor the image reader knows this format; is the file complete?")
