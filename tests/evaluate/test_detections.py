"""Local maxima against a slow search, and the CSV of detections there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.examples import examples

from wsipipe.errors import ConfigError
from wsipipe.evaluate import detections
from wsipipe.evaluate.detections import find_detections, maxima, read_detections, write_detections
from wsipipe.evaluate.froc import Detections
from wsipipe.store import SlideStore

Maker = Callable[..., Path]


def slow_maxima(values: NDArray[np.uint8], reach: int) -> list[tuple[int, int]]:
    """Cells that none within `reach` exceeds, from the highest on, the upper left of equal ones first."""
    height, width = values.shape
    kept: list[tuple[int, int]] = []
    for r, c in sorted(np.ndindex(height, width), key=lambda at: (-int(values[at]), at)):
        around = values[max(0, r - reach) : r + reach + 1, max(0, c - reach) : c + reach + 1]
        taken = any(max(abs(r - y), abs(c - x)) < reach for y, x in kept)
        if values[r, c] > 0 and values[r, c] == around.max() and not taken:
            kept.append((r, c))
    return kept


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.sampled_from([2, 5, 250]))
@examples(25)
def test_maxima_are_those_of_a_slow_search(seed: int, reach: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (rng.integers(1, 12), rng.integers(1, 12))).astype(np.uint8)
    found = maxima(values, reach)
    assert [tuple(at) for at in found.tolist()] == slow_maxima(values, reach)


def test_cells_of_about_8_um_have_the_highest_score_and_a_place_in_the_slide(
    make_store: Maker, add_scores: Callable[..., None]
) -> None:
    """Scores every 4 px of 0.5 um: four of them side by side are one cell."""
    values = np.zeros((1, 40, 60), np.uint8)
    values[0, 13, 22], values[0, 12, 21], values[0, 39, 59] = 51, 255, 102
    tissue = np.ones((158, 240), np.uint8)
    path = make_store("s", tissue, net=tissue)
    add_scores(path, "net", values, 4, ("a",))
    (found,) = find_detections(SlideStore(path), "net", 40)
    assert found.p.tolist() == [1.0, 0.4]
    assert found.xy_px0.tolist() == [[5.5 * 16, 3.5 * 16], [14.5 * 16, 9.5 * 16]]


def test_bands_change_nothing(
    make_store: Maker, add_scores: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 255, (1, 33, 21)).astype(np.uint8)
    tissue = np.ones((33 * 8, 21 * 8), np.uint8)
    path = make_store("s", tissue, net=tissue)
    add_scores(path, "net", values, 8, ("a",))
    (whole,) = find_detections(SlideStore(path), "net", 20)
    monkeypatch.setattr(detections, "_BAND", 3)
    (bands,) = find_detections(SlideStore(path), "net", 20)
    np.testing.assert_array_equal(whole.xy_px0, bands.xy_px0)
    np.testing.assert_array_equal(whole.p, bands.p)


def test_nothing_is_found_on_glass(make_store: Maker, add_scores: Callable[..., None]) -> None:
    tissue = np.zeros((64, 64), np.uint8)
    tissue[:, :32] = 1
    path = make_store("s", tissue, net=tissue)
    add_scores(path, "net", np.array([[[0, 90, 200, 255]] * 4], np.uint8), 16, ("a",))
    (found,) = find_detections(SlideStore(path), "net", 8)
    assert found.p.tolist() == [90 / 255] * 4


def test_a_saturated_area_gives_a_detection_every_reach() -> None:
    assert maxima(np.full((7, 10), 255, np.uint8), 3).tolist() == [
        [row, col] for row in (0, 3, 6) for col in (0, 3, 6, 9)
    ]


def test_a_csv_reads_back(tmp_path: Path) -> None:
    found = {
        "s1": {"a": Detections(np.array([[1.5, 2], [30, 4]]), np.array([0.25, 0.75])), "b": Detections.none()},
        "s2": {"a": Detections.none(), "b": Detections(np.array([[7.0, 8]]), np.array([1.0]))},
    }
    path = tmp_path / "d.csv"
    write_detections(path, found)
    assert path.read_text().splitlines()[:2] == ["slide,class,x_px0,y_px0,p", "s1,a,30.0,4.0,0.7500"]
    back = read_detections(path, ("a", "b"))
    assert back["s1"]["a"].p.tolist() == [0.75, 0.25]
    assert back["s1"]["a"].xy_px0.tolist() == [[30, 4], [1.5, 2]]
    assert back["s2"]["b"].xy_px0.tolist() == [[7, 8]]
    assert "b" not in back["s1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column slide, class, x_px0, y_px0, p; expected slide,class,x_px0,y_px0,p with level-0 px"),
        ("slide,x_px0,y_px0,p\ns,1,2,0.5\n", "no column class"),
        ("slide,class,x_px0,y_px0,p\ns,c,1,2,0.5\n", "line 2: expected a class of a, b, two coordinates and p"),
        ("slide,class,x_px0,y_px0,p\ns,a,1,2,1.5\n", r"line 2: .*p in 0\.\.1"),
        ("slide,class,x_px0,y_px0,p\ns,a,1,nan,1\n", "line 2: expected"),
        ("slide,class,x_px0,y_px0,p\ns,a,1,x,1\n", "line 2: expected"),
    ],
)
def test_what_is_wrong_with_a_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_detections(path, ("a", "b"))


def test_a_csv_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--detections .*none\.csv: cannot be read"):
        read_detections(tmp_path / "none.csv", ("a",))
