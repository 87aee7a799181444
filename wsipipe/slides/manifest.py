"""Read a manifest: a CSV with one slide per row, its resolution and its tissue mask where needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from wsipipe.errors import ConfigError
from wsipipe.labels import read_table, slide_id_of
from wsipipe.slides.base import PLAUSIBLE_MPP, SlideFile

SUFFIXES = (".csv", ".tsv")

_PATH = ("path", "image_path", "wsi", "slide", "filename")
_ID = ("slide_id", "sample_id")
_MPP = ("mpp", "spacing_at_level_0")
_MPP_XY = ("mpp_x", "mpp_y")
_MASK = ("mask", "mask_path")
_KNOWN = frozenset((*_PATH, *_ID, *_MPP, *_MPP_XY, *_MASK))


def read_manifest(path: Path) -> list[tuple[str, SlideFile]]:
    """(slide id, slide) of every row, in order.

    Columns, in upper or lower case; of synonyms the first non-empty one counts:

        path | image_path | wsi | slide | filename    the slide: a file or a DICOM folder
        slide_id | sample_id                          optional; default: derived from the file name
        mpp | spacing_at_level_0, or mpp_x and mpp_y  optional: um/px of level 0, replaces what the file says
        mask | mask_path                              optional: a tissue mask

    Optional cells may be empty, other columns are ignored. A relative path is looked up in the manifest's folder, then
    in the current folder. A BOM, `;` and tab separators and stray spaces are accepted. Raises ConfigError with every
    problem of every row.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as UTF-8 text ({error}); save it as CSV UTF-8") from None
    if not text.strip():
        raise ConfigError(f"{path}: the manifest is empty; expected a header such as path,mpp")
    header, records, problems = read_table(text, _KNOWN)
    slides = []
    if not records:
        problems.append("the manifest lists no slide")
    if not any(column in header for column in _PATH):
        problems.append(f"no column path (or {', '.join(_PATH[1:])}); found {', '.join(header)}")
        records = []
    for line, record in records:
        with _collecting(problems, f"line {line}: "):
            slides.append(_slide(record, path.parent))
    if problems:
        raise ConfigError(f"{path}: {joined(problems)}")
    return slides


def joined(problems: Sequence[str], limit: int = 20) -> str:
    """Problems as one message: the first `limit`, then the number of the others."""
    more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
    return "; ".join([*problems[:limit], *more])


def default_id(path: Path) -> str:
    """The slide id derived from the name of a file or DICOM folder."""
    return slide_id_of(path.name if path.is_dir() else path.stem)


def _slide(record: Mapping[str, str], folder: Path) -> tuple[str, SlideFile]:
    """One row as (slide id, slide). Raises ValueError with all its problems."""
    path = mpp = mask = None
    problems: list[str] = []
    with _collecting(problems):
        path = _find_file(_cell(record, _PATH), folder)
        if path is None:
            raise ValueError("no path")
    with _collecting(problems):
        mpp = _mpp(record)
    with _collecting(problems, "mask: "):
        mask = _find_file(_cell(record, _MASK), folder)
    if path is None or problems:
        raise ValueError(", ".join(problems))
    slide_id = _cell(record, _ID)
    return slide_id_of(slide_id) if slide_id else default_id(path), SlideFile(path, mpp, mask)


@contextmanager
def _collecting(problems: list[str], prefix: str = "") -> Iterator[None]:
    """Append a ValueError of the block to `problems`, with `prefix` before its text."""
    try:
        yield
    except ValueError as error:
        problems.append(f"{prefix}{error}")


def _cell(record: Mapping[str, str], names: Sequence[str]) -> str:
    """The first non-empty cell of these columns, otherwise an empty string."""
    return next((record[n] for n in names if record.get(n)), "")


def _find_file(name: str, folder: Path) -> Path | None:
    """The file with this name, None for an empty name. Raises ValueError if it does not exist."""
    if not name:
        return None
    for candidate in (folder / name, Path(name)):
        if os.path.exists(candidate):
            return candidate
    searched = "" if Path(name).is_absolute() else f" (searched {folder.resolve()} and the current folder)"
    raise ValueError(f"no such file {name}{searched}")


def _mpp(record: Mapping[str, str]) -> tuple[float, float] | None:
    """(x, y) um/px of level 0, None if the row has no resolution. Raises ValueError if it is implausible."""
    single, xy = _cell(record, _MPP), [record.get(n, "") for n in _MPP_XY]
    if single and any(xy):
        raise ValueError("both mpp and mpp_x, mpp_y are filled; keep one of them")
    cells = [single, single] if single else xy
    if not any(cells):
        return None
    if not all(cells):
        raise ValueError("only one of mpp_x and mpp_y is filled; fill both")
    low, high = PLAUSIBLE_MPP
    try:
        x, y = (float(c) for c in cells)
    except ValueError:
        raise ValueError(f"mpp {single or ' x '.join(xy)!r} is not a number in um/px, e.g. 0.25") from None
    if not (low <= x <= high and low <= y <= high):
        raise ValueError(f"mpp {x:g} x {y:g} um/px is outside {low:g}..{high:g}")
    return x, y
