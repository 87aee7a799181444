"""Classes, and weak labels from labels.csv: each row lists the classes present in a slide, region or patch."""

from __future__ import annotations

import csv
import io
import logging
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from wsipipe.errors import LabelsError

log = logging.getLogger(__name__)

IGNORE = 255
"""Ignore index: mask value of pixels that are uncertain, not predicted or without data."""


class Tissue(IntEnum):
    """Values of `labels/tissue`; invalid: the slide has no readable pixels there."""

    GLASS = 0
    TISSUE = 1
    INVALID = 255


_BOX = ("x", "y", "width", "height")
_KNOWN = {"slide_id", "slide", "label", "patient_id", "split", *_BOX}
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Classes:
    """Names of the classes. Mask value i + 1 means names[i], 0 none of them, 255 ignore."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) > IGNORE - 1:
            raise ValueError(f"{len(self.names)} classes; a uint8 mask has room for {IGNORE - 1} beside 0 and 255")

    def __len__(self) -> int:
        return len(self.names)

    def mask_values(self, ignored: str = "ignore") -> dict[int, str]:
        """Mask value -> name, as label images record it; `ignored` is the name of 255."""
        return {0: "none", **dict(enumerate(self.names, start=1)), IGNORE: ignored}

    def multi_hot(self, present: Sequence[str]) -> tuple[int, ...]:
        """0 or 1 per class."""
        return tuple(int(n in present) for n in self.names)


@dataclass(frozen=True)
class WeakLabel:
    """One row of labels.csv.

    present: 0 or 1 per class. box_px0: (x, y, width, height) in level-0 px, or None for the whole slide.
    """

    line: int
    slide_id: str
    present: tuple[int, ...]
    box_px0: tuple[float, float, float, float] | None = None
    patient_id: str = ""
    split: str = "train"


@dataclass(frozen=True)
class LabelTable:
    """All rows of one labels.csv, and the classes."""

    path: Path
    classes: Classes
    rows: tuple[WeakLabel, ...]

    def of_split(self, split: str) -> tuple[WeakLabel, ...]:
        """The rows of one split."""
        return tuple(r for r in self.rows if r.split == split)


def slide_id_of(name: str) -> str:
    """A file name or id as a safe slide id: letters, digits, `.`, `_`, `-`; other characters become `_`.

    Both Unicode forms of an accented letter (one code point, or letter plus accent as on a Mac) give the same id.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", unicodedata.normalize("NFC", name.strip()))
    return safe if re.match(r"[A-Za-z0-9]", safe) else "s" + safe


def match_slide_id(name: str, known: Collection[str]) -> str:
    """The slide id that a table entry refers to: `name` if it is `known`, otherwise `name` without its file suffix."""
    slide_id = slide_id_of(name)
    return slide_id if slide_id in known else slide_id.rsplit(".", 1)[0]


def read_labels(path: Path, classes: Sequence[str] | None = None, to_fit: bool = True) -> LabelTable:
    """Read labels.csv; `classes` lists the allowed names (default: those that the file uses).

    Accepts a BOM, `,`, `;` or tab as separator, stray spaces, and either a column `label` (names joined by `;` or `|`)
    or one 0/1 column per class. With `to_fit` the labels must also allow training: training rows exist, and their
    labels differ. Raises LabelsError with every problem found.
    """
    text = _decode(path)
    if not text.strip():
        raise LabelsError(path, ["the file is empty; expected a header such as slide_id,label"])
    header, raw, problems = read_table(text, _KNOWN)
    problems = _header_problems(header) + problems
    if problems:
        raise LabelsError(path, problems)
    columns = [h for h in header if h and h not in _KNOWN] if "label" not in header else []
    used = columns or sorted({name for _, r in raw for name in _names(r["label"])})
    table = Classes(tuple(classes) if classes else tuple(used))
    rows: list[WeakLabel] = []
    for line, record in raw:
        try:
            rows.append(_row(line, record, columns, table))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if to_fit and not table.names:
        problems.append("no row has a class; at least one positive label is required")
    problems += _table_problems(rows, to_fit)
    if problems:
        raise LabelsError(path, problems)
    return LabelTable(path, table, tuple(rows))


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise LabelsError(path, ["no such file; set it with --labels"]) from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise LabelsError(path, [f"not UTF-8 text ({error}); save it as CSV UTF-8"]) from None


def read_table(text: str, known: Collection[str]) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[str]]:
    """Parse CSV with a header: the header, (line, column -> cell) of every row, and the problems found.

    `text` must not be blank; the separator is `,`, `;` or tab. Blank rows are skipped. `known` columns match in upper
    or lower case.
    """
    first = next(line for line in text.splitlines() if line.strip())
    lines = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count), skipinitialspace=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    problems: list[str] = []
    for cells in lines:
        values = [c.strip() for c in cells]
        if not any(values):
            continue
        if not header:
            header = [v.lower() if v.lower() in known else v for v in values]
            doubles = sorted({h for h in header if h and header.count(h) > 1})
            problems = [f"column {h!r} appears twice" for h in doubles]
            continue
        if any(values[len(header) :]):
            problems.append(
                f"line {lines.line_num}: {len(values)} cells, but the header has {len(header)}; "
                "quote cells that contain the separator"
            )
        values += [""] * (len(header) - len(values))
        rows.append((lines.line_num, dict(zip(header, values, strict=False))))
    return header, rows, problems


def _header_problems(header: Sequence[str]) -> list[str]:
    problems = []
    if "slide_id" not in header and "slide" not in header:
        problems.append(f"no column slide_id; found {', '.join(header)}")
    if "label" not in header and not [h for h in header if h and h not in _KNOWN]:
        problems.append("no column label and no 0/1 column per class")
    if any(b in header for b in _BOX) and not all(b in header for b in _BOX):
        problems.append(f"a region needs all columns {', '.join(_BOX)} (level-0 px)")
    return problems


def _names(cell: str) -> list[str]:
    return [n for n in (part.strip() for part in re.split(r"[;|]", cell)) if n]


def _row(line: int, record: Mapping[str, str], columns: Sequence[str], classes: Classes) -> WeakLabel:
    """One record as a WeakLabel. Raises ValueError with what is wrong."""
    given = record.get("slide_id") or record.get("slide") or ""
    if not given:
        raise ValueError("slide_id is empty")
    slide_id = slide_id_of(given)
    if columns:
        bad = {c: record[c] for c in columns if record[c] not in ("", "0", "1", "0.0", "1.0")}
        if bad:
            raise ValueError(f"{', '.join(f'{c} = {v!r}' for c, v in bad.items())}: expected 0 or 1")
        names = [c for c in columns if record[c].startswith("1")]
    else:
        names = _names(record["label"])
    unknown = [n for n in names if n not in classes.names]
    if unknown:
        raise ValueError(f"unknown class {', '.join(unknown)}; the classes are {', '.join(classes.names)}")
    split = record.get("split", "").lower() or "train"
    if split not in _SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(_SPLITS)}")
    box = _box(record)
    return WeakLabel(line, slide_id, classes.multi_hot(names), box, record.get("patient_id", ""), split)


def _box(record: Mapping[str, str]) -> tuple[float, float, float, float] | None:
    cells = [record.get(b, "") for b in _BOX]
    if not any(cells):
        return None
    try:
        x, y, w, h = (float(c) for c in cells)
    except ValueError:
        raise ValueError(f"x,y,width,height = {','.join(cells)}: expected four numbers in level-0 px") from None
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and max(x, y, w, h) < float("inf")):
        raise ValueError(f"x,y,width,height = {','.join(cells)}: expected a box of positive size inside the slide")
    return x, y, w, h


def _table_problems(rows: Sequence[WeakLabel], to_fit: bool = True) -> list[str]:
    """Problems between rows: duplicates, slides or patients in two splits and, `to_fit`, labels without contrast."""
    problems: list[str] = []
    seen: dict[tuple[str, object], int] = {}
    for r in rows:
        key = (r.slide_id, r.box_px0)
        if key in seen:
            what = "slide" if r.box_px0 is None else "region"
            problems.append(f"lines {seen[key]} and {r.line}: {what} {r.slide_id} has two rows")
        seen.setdefault(key, r.line)
    for kind, name in (("patient", "patient_id"), ("slide", "slide_id")):
        splits: dict[str, set[str]] = {}
        for r in rows:
            splits.setdefault(getattr(r, name), set()).add(r.split)
        both = {i: s for i, s in splits.items() if i and len(s) > 1}
        problems += [f"{kind} {i} is in the splits {' and '.join(sorted(s))}; keep it in one" for i, s in both.items()]
    if not to_fit:
        return problems
    train = [r for r in rows if r.split == "train"]
    if rows and not train:
        problems.append("no row has split train; training needs some")
    elif train and len({r.present for r in train}) == 1:
        problems.append(
            f"all {len(train)} training rows have the same label; at least one positive and one negative are required"
        )
    return problems


def match_stores(
    table: LabelTable, store_ids: Sequence[str], failed: Collection[str] = ()
) -> tuple[LabelTable, list[str]]:
    """Match rows with stores; returns the table with store ids, and the ids of stores without a row.

    A slide_id may have a file suffix (`a.svs` for store `a`). Rows of `failed` slides, which could not be tiled, are
    skipped with a warning. Raises LabelsError with all other rows that have no store.
    """
    known = set(store_ids)
    rows, problems, skipped = [], [], 0
    for r in table.rows:
        name = match_slide_id(r.slide_id, known)
        if name not in known and not {name, r.slide_id}.isdisjoint(failed):
            skipped += 1
            continue
        if name not in known:
            problems.append(f"line {r.line}: no store for slide {r.slide_id}; tile the slide or remove the row")
        rows.append(WeakLabel(r.line, name, r.present, r.box_px0, r.patient_id, r.split))
    if skipped:
        log.warning("%s: skipped %d of %d rows: their slides could not be tiled", table.path, skipped, len(table.rows))
    problems += _table_problems(rows)  # two spellings may name one store
    if problems:
        raise LabelsError(table.path, problems)
    labelled = {r.slide_id for r in rows}
    return LabelTable(table.path, table.classes, tuple(rows)), [s for s in store_ids if s not in labelled]
