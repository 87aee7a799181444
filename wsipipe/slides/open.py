"""Find slides in the paths that a user gives, and open each with the reader that knows its format."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from wsipipe.errors import ConfigError, SlideError
from wsipipe.slides import manifest
from wsipipe.slides.base import Slide, SlideFile

log = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (
    ".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".tif", ".tiff", ".svslide", ".bif", ".czi", *PICTURES,
)  # fmt: skip


def find_slides(paths: Sequence[Path]) -> dict[str, SlideFile]:
    """Slide id -> slide for files, DICOM folders, folders of slides and manifests (`read_manifest`: paths in .csv).

    In a folder, PNG and JPEG are slides only where nothing else is: beside slides they are masks and thumbnails. A
    file that is given by name is taken whatever its suffix. A slide that a manifest lists is as its row says, even if
    it is found elsewhere too. Raises ConfigError with every problem: a path that does not exist, a folder without
    slides, what is wrong with a manifest, and two slides of one id (also where only upper and lower case differ).
    """
    listed: list[tuple[str, SlideFile]] = []
    found: list[tuple[str, SlideFile]] = []
    problems: list[str] = []
    for given in paths:
        try:
            if given.suffix.lower() in manifest.SUFFIXES and given.is_file():
                listed += manifest.read_manifest(given)
            else:
                found += [(manifest.default_id(path), SlideFile(path)) for path in _expand(given)]
        except ConfigError as error:
            problems.append(str(error))
    in_manifest = {file.path.resolve() for _, file in listed}
    slides, clashes = _by_id([*listed, *(s for s in found if s[1].path.resolve() not in in_manifest)])
    if problems or clashes:
        raise ConfigError(manifest.in_one([*problems, *clashes]))
    return slides


def _by_id(slides: Iterable[tuple[str, SlideFile]]) -> tuple[dict[str, SlideFile], list[str]]:
    """Each slide once by its id, and the clashes: one id of two slides, two ids of one slide."""
    by_id: dict[str, SlideFile] = {}
    spelled: dict[str, str] = {}  # case-folded id -> id
    id_of: dict[Path, str] = {}
    clashes = []
    for slide_id, file in slides:
        first_id = spelled.setdefault(slide_id.casefold(), slide_id)
        first = by_id.setdefault(first_id, file)
        name = id_of.setdefault(file.path.resolve(), first_id)
        if first.path.resolve() != file.path.resolve():
            called = first_id if first_id == slide_id else f"{first_id} and {slide_id}, one name on many file systems"
            clashes.append(
                f"{first.path} and {file.path} would both be called {called}; "
                "rename one, tile them apart, or give each a slide_id in a manifest"
            )
        elif name != first_id:
            clashes.append(f"{file.path} is given as {name} and as {slide_id}; one file is one slide: keep one of them")
        elif (first.mpp_override, first.mask) != (file.mpp_override, file.mask):
            clashes.append(f"{file.path} is listed twice, with different mpp or mask; keep one row")
    return by_id, clashes


def _expand(given: Path) -> list[Path]:
    """The slides of a path: itself, or those in the folder. What a folder holds besides is told to the log."""
    try:
        if given.is_file() or _is_dicom(given):
            return [given]
        shown = [p for p in sorted(given.iterdir()) if not p.name.startswith(".")]
    except FileNotFoundError:
        raise ConfigError(f"{given}: no such file or folder") from None
    except OSError as error:
        raise ConfigError(f"{given}: neither a file nor a folder that can be read ({error.strerror})") from None
    inside = [p for p in shown if (p.is_file() and p.suffix.lower() in SUFFIXES) or _is_dicom(p)]
    if not inside:
        raise ConfigError(f"{given}: no slides in this folder; known are {', '.join(SUFFIXES)} and folders of .dcm")
    slides = [p for p in inside if p.suffix.lower() not in PICTURES] or inside
    if len(slides) < len(inside):
        log.info("%s: %d pictures beside slides are no slides", given, len(inside) - len(slides))
    _tell_left_out(given, set(shown) - set(inside), {p.stem for p in slides})
    return slides


def _tell_left_out(folder: Path, others: Iterable[Path], stems: set[str]) -> None:
    """One warning that counts the files of each unknown suffix, and the folders but those of MRXS slides."""
    kinds = Counter(
        "folder" if p.is_dir() else p.suffix.lower() or "file without suffix"
        for p in others
        if not (p.is_dir() and p.name in stems)
    )
    if kinds:
        told = ", ".join(f"{n} x {kind}" for kind, n in sorted(kinds.items()))
        log.warning("%s: left out, not known to be slides: %s; give a file by name to have it tried", folder, told)


def _is_dicom(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() == ".dcm" for p in path.iterdir())


def open_slide(
    path: Path, slide_id: str, mpp_override: float | tuple[float, float] = 0.0, mpp_source: str = "override"
) -> Slide:
    """Open one slide with the first reader that takes its format.

    `mpp_override` (um/px of level 0; one number or (x, y)) replaces what the file says, 0 trusts the file;
    `mpp_source` is recorded as where it comes from. Raises SlideError if nothing can open the slide, or if its
    resolution is missing or absurd.
    """
    if not path.exists():
        raise SlideError(f"{path}: no such file or folder")
    override = mpp_override if isinstance(mpp_override, tuple) else (mpp_override, mpp_override)
    file = _first_dicom(path) if path.is_dir() else path
    try:
        return _reader_of(file)(file, slide_id, override if any(override) else None, mpp_source)
    except (SlideError, MemoryError):
        raise
    except Exception as error:  # damaged headers make parsers raise nearly anything: it costs the slide, not the run
        raise SlideError(f"{path}: it cannot be opened ({type(error).__name__}: {error})") from error


def _first_dicom(folder: Path) -> Path:
    """The first DICOM file of a folder: OpenSlide finds the others of its series."""
    parts = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")
    if not parts:
        raise SlideError(f"{folder}: a folder without DICOM files")
    return parts[0]


def _reader_of(file: Path) -> Callable[[Path, str, tuple[float, float] | None, str], Slide]:
    """The reader for a file. OME-TIFF goes before OpenSlide, which sees a tiled one as a TIFF of a single level."""
    from wsipipe.slides.readers import image, openslide, tiff

    if tiff.is_ome(file):
        return tiff.TiffReader
    if openslide.claims(file):
        return openslide.OpenSlideReader
    if tiff.claims(file):
        return tiff.TiffReader
    if file.suffix.lower() in image.SUFFIXES:
        return image.ImageReader
    raise SlideError(f"{file}: no reader knows this format; is the file complete?")
