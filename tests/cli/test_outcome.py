"""What a command says to a person on a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsipipe.cli.outcome import fitted


def test_a_long_line_is_broken_at_spaces_below_its_second_column():
    line = "patches    128 px every 128 px: 8 usable"
    assert fitted(line, 40) == line
    assert fitted(line, 34) == "patches    128 px every 128 px: 8\n           usable"
    assert fitted("  64.3 % of them glass", 14) == "  64.3 % of\n    them glass"


@given(st.lists(st.text("abcd-/", min_size=1, max_size=12), min_size=1, max_size=20), st.integers(20, 60))
def test_no_word_is_lost_or_broken(words: list[str], width: int):
    broken = fitted(" ".join(words), width)
    assert broken.split() == words
    assert max(map(len, broken.splitlines())) <= width
