"""Find the slides in the files, folders and manifests that a user names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from wsipipe.errors import ConfigError
from wsipipe.slides import manifest
from wsipipe.slides.base import SlideFile
from wsipipe.slides.readers import known_suffixes

log = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg")
"""Suffixes that count as slides only in a folder without other slides."""


def find_slides(paths: Sequence[Path]) -> dict[str, SlideFile]:
    """Slide id -> slide for slide files, DICOM folders, folders of slides, and manifests (.csv, see `read_manifest`).

    A folder is searched for the suffixes of the readers. PNG and JPEG files next to other slides are ignored: they are
    masks and thumbnails. A file named explicitly may have any suffix. A manifest row takes precedence over the same
    slide found elsewhere.

    Raises ConfigError with every problem: missing paths, folders without slides, faults of a manifest, and two slides
    with one id (also if they differ only in upper and lower case).
    """
    suffixes = known_suffixes()
    listed: list[tuple[str, SlideFile]] = []
    found: list[tuple[str, SlideFile]] = []
    problems: list[str] = []
    for given in paths:
        try:
            if given.suffix.lower() in manifest.SUFFIXES and given.is_file():
                listed += manifest.read_manifest(given)
            else:
                found += [(manifest.default_id(path), SlideFile(path)) for path in _expand(given, suffixes)]
        except ConfigError as error:
            problems.append(str(error))
    in_manifest = {file.path.resolve() for _, file in listed}
    slides, clashes = _by_id([*listed, *(s for s in found if s[1].path.resolve() not in in_manifest)])
    if problems or clashes:
        raise ConfigError(manifest.joined([*problems, *clashes]))
    return slides


def _by_id(slides: Iterable[tuple[str, SlideFile]]) -> tuple[dict[str, SlideFile], list[str]]:
    """Slide id -> slide, and the clashes: one id for two slides, two ids for one slide."""
    by_id: dict[str, SlideFile] = {}
    spelled: dict[str, str] = {}  # case-folded id -> id
    id_of: dict[Path, str] = {}
    clashes = []
    for slide_id, file in slides:
        first_id = spelled.setdefault(slide_id.casefold(), slide_id)
        first = by_id.setdefault(first_id, file)
        name = id_of.setdefault(file.path.resolve(), first_id)
        if first.path.resolve() != file.path.resolve():
            ids = first_id if first_id == slide_id else f"{first_id} and {slide_id}, one name on many file systems"
            clashes.append(
                f"{first.path} and {file.path} would both get the id {ids}; "
                "rename one, tile them into different folders, or set slide_id in a manifest"
            )
        elif name != first_id:
            clashes.append(f"{file.path} is listed as {name} and as {slide_id}; keep one id per file")
        elif (first.mpp_override, first.mask) != (file.mpp_override, file.mask):
            clashes.append(f"{file.path} is listed twice with different mpp or mask; keep one row")
    return by_id, clashes


def _expand(given: Path, suffixes: Sequence[str]) -> list[Path]:
    """The slides at a path: the file itself or the slides in the folder. The log names what is ignored."""
    try:
        if given.is_file() or _is_dicom(given):
            return [given]
        visible = [p for p in sorted(given.iterdir()) if not p.name.startswith(".")]
    except FileNotFoundError:
        raise ConfigError(f"{given}: no such file or folder") from None
    except OSError as error:
        raise ConfigError(f"{given}: not a readable file or folder ({error.strerror})") from None
    known = [p for p in visible if (p.is_file() and p.suffix.lower() in suffixes) or _is_dicom(p)]
    if not known:
        raise ConfigError(f"{given}: no slides in this folder; known are {', '.join(suffixes)} and folders of .dcm")
    slides = [p for p in known if p.suffix.lower() not in PICTURES] or known
    if len(slides) < len(known):
        log.info("%s: ignoring %d PNG/JPEG files next to slides", given, len(known) - len(slides))
    _warn_ignored(given, set(visible) - set(known), {p.stem for p in slides})
    return slides


def _warn_ignored(folder: Path, others: Iterable[Path], stems: set[str]) -> None:
    """One warning with the number of files per unknown suffix and of folders, without the folders of MRXS slides."""
    counts = Counter(
        "folder" if p.is_dir() else p.suffix.lower() or "file without suffix"
        for p in others
        if not (p.is_dir() and p.name in stems)
    )
    if counts:
        text = ", ".join(f"{n} x {kind}" for kind, n in sorted(counts.items()))
        log.warning("%s: ignoring %s: unknown suffix; name a file explicitly to try it as a slide", folder, text)


def _is_dicom(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() == ".dcm" for p in path.iterdir())
