"""Read a manifest: a CSV of slides, one a row, with the resolution and the tissue mask where a file lacks them."""

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

    Columns, in any case, of synonyms the first that is filled:

        path | image_path | wsi | slide | filename    the slide: a file or a DICOM folder
        slide_id | sample_id                          optional; else the id is taken from the file name
        mpp | spacing_at_level_0, or mpp_x and mpp_y  optional: um/px of level 0, replaces what the file says
        mask | mask_path                              optional: a tissue mask

    Optional cells may be empty; users keep more columns in such tables, so others are left alone. A relative path
    starts at the manifest's folder or, where that has no such file, at the current one. BOM, `;` and tab separators
    and stray spaces are accepted. Raises ConfigError with every problem of every row.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); save it as CSV UTF-8") from None
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
        with _noting(problems, f"line {line}: "):
            slides.append(_slide(record, path.parent))
    if problems:
        raise ConfigError(f"{path}: {in_one(problems)}")
    return slides


def in_one(problems: Sequence[str], most: int = 20) -> str:
    """Problems as one message; of many, the first `most`."""
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "; ".join([*problems[:most], *more])


def default_id(path: Path) -> str:
    """The slide id that the name of a file or DICOM folder gives."""
    return slide_id_of(path.name if path.is_dir() else path.stem)


def _slide(record: Mapping[str, str], folder: Path) -> tuple[str, SlideFile]:
    """One row; ValueError says all that is wrong with it."""
    path = mpp = mask = None
    wrong: list[str] = []
    with _noting(wrong):
        path = _located(_cell(record, _PATH), folder)
        if path is None:
            raise ValueError("no path")
    with _noting(wrong):
        mpp = _mpp(record)
    with _noting(wrong, "mask: "):
        mask = _located(_cell(record, _MASK), folder)
    if path is None or wrong:
        raise ValueError(", ".join(wrong))
    given = _cell(record, _ID)
    return slide_id_of(given) if given else default_id(path), SlideFile(path, mpp, mask)


@contextmanager
def _noting(problems: list[str], what: str = "") -> Iterator[None]:
    """A ValueError within ends the block and becomes a problem, with `what` before it."""
    try:
        yield
    except ValueError as error:
        problems.append(f"{what}{error}")


def _cell(record: Mapping[str, str], names: Sequence[str]) -> str:
    """The first of these columns that is filled, or an empty text."""
    return next((record[n] for n in names if record.get(n)), "")


def _located(name: str, folder: Path) -> Path | None:
    """The file of this name, None for an empty name; ValueError if there is no such file."""
    if not name:
        return None
    for place in (folder / name, Path(name)):
        if os.path.exists(place):
            return place
    looked = "" if Path(name).is_absolute() else f" (looked in {folder.resolve()} and in the current folder)"
    raise ValueError(f"no such file {name}{looked}")


def _mpp(record: Mapping[str, str]) -> tuple[float, float] | None:
    """(x, y) um/px of level 0, None where the row says nothing; ValueError if it is no plausible resolution."""
    both, apart = _cell(record, _MPP), [record.get(n, "") for n in _MPP_XY]
    if both and any(apart):
        raise ValueError("mpp stands beside mpp_x, mpp_y: fill the one or the others")
    cells = [both, both] if both else apart
    if not any(cells):
        return None
    if not all(cells):
        raise ValueError("mpp_x and mpp_y have to be given together")
    low, high = PLAUSIBLE_MPP
    try:
        x, y = (float(c) for c in cells)
    except ValueError:
        raise ValueError(f"mpp {both or ' x '.join(apart)!r} is not a number in um/px, e.g. 0.25") from None
    if not (low <= x <= high and low <= y <= high):
        raise ValueError(f"mpp {x:g} x {y:g} um/px is outside {low:g}..{high:g}")
    return x, y
