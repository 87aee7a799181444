"""Tables for people: aligned columns, or a block per row where the columns do not fit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], text_columns: int = 2, width: int = 0) -> list[str]:
    """Lines of a table whose first row is the header.

    The first `text_columns` are set to the left, the others, numbers, to the right. A table wider than `width` columns
    (0: no limit) becomes a block per row: its texts, and below them each number after its name.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width and sum(widths) + 2 * (len(widths) - 1) > width:
        return [line for row in rows[1:] for line in _block(rows[0], row, text_columns, width)]
    lines = ["  ".join(_padded(row, widths, text_columns)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return lines


def _padded(row: Sequence[str], widths: Sequence[int], text_columns: int) -> list[str]:
    """The cells of a row, texts filled up on the right, numbers on the left."""
    texts = [cell.ljust(w) for cell, w in zip(row[:text_columns], widths, strict=False)]
    return [*texts, *(cell.rjust(w) for cell, w in zip(row[text_columns:], widths[text_columns:], strict=True))]


def _block(header: Sequence[str], row: Sequence[str], text_columns: int, width: int) -> list[str]:
    """A row as its texts and, indented below them, its numbers."""
    pairs = [f"{name} {cell}" for name, cell in zip(header, row, strict=True)][text_columns:]
    unbroken = "  ".join(pair.replace(" ", "\xa0") for pair in pairs)
    numbers = textwrap.wrap(unbroken, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return [", ".join(row[:text_columns]), *(line.replace("\xa0", " ") for line in numbers)]
