"""Tables for people."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsipipe.runtime.table import aligned

ROWS = [["answer", "class", "IoU", "Dice"], ["unet", "tumour", "0.655", "0.792"], ["all tissue", "a", "-", "0.9"]]


def test_texts_are_set_left_and_numbers_right() -> None:
    assert aligned(ROWS) == [
        "answer      class     IoU   Dice",
        "----------  ------  -----  -----",
        "unet        tumour  0.655  0.792",
        "all tissue  a           -    0.9",
    ]
    assert aligned(ROWS, width=32) == aligned(ROWS)


def test_a_table_that_is_too_wide_becomes_a_block_per_row() -> None:
    assert aligned(ROWS, width=31) == ["unet, tumour", "  IoU 0.655  Dice 0.792", "all tissue, a", "  IoU -  Dice 0.9"]
    assert aligned(ROWS, width=14)[:3] == ["unet, tumour", "  IoU 0.655", "  Dice 0.792"]


CELLS = st.lists(st.lists(st.text("abc1.", min_size=1, max_size=9), min_size=5, max_size=5), min_size=2, max_size=6)


@given(CELLS, st.integers(24, 90))
def test_every_cell_is_shown_and_no_line_is_longer_than_the_terminal(rows: list[list[str]], width: int) -> None:
    lines = aligned(rows, width=width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(cell in text for row in rows[1:] for cell in row)
