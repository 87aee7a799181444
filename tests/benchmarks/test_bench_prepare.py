"""Raw scores as masks, and the cases of EBHI divided."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.quality.methods_bench.raw_masks import raw_mask
from wsipipe.geometry import Grid
from wsipipe.store import SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import ArraySpec


def ebhi() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "quality" / "methods_data" / "lay_out_ebhi.py"
    spec = importlib.util.spec_from_file_location("lay_out_ebhi", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


divide = ebhi().divide


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    """A store of 50 x 30 px with scores of two classes every 8 px; the left 10 px are glass."""
    grid = Grid((50, 30), (0.5, 0.5), (1.0, 1.0), 16, 16)
    made = SlideStore.create(tmp_path / "s.zarr", grid, 0, {"slide_id": "s", "pixel_digest": "p"})
    tissue = np.ones((30, 50), np.uint8)
    tissue[:, :10] = 0
    values = np.zeros((2, 4, 7), np.uint8)
    values[0, :, 1:4] = 128
    values[1, 1, 2:5] = 200
    values[0, 2, 5] = 127
    made.write_labels("tissue_", {0: "glass", 1: "tissue"}, {}, _shards(made, tissue))
    (made.path / "labels" / "tissue_").rename(made.path / "labels" / "tissue")
    made.write_scores(
        "m", 8, {"classes": ["a", "b"]}, ((s, values) for s, _ in shard_windows(ArraySpec((2, 4, 7), "uint8", 0)))
    )
    return SlideStore(made.path)


def _shards(store: SlideStore, mask: np.ndarray) -> Iterator[Any]:
    for shard, w in shard_windows(store.mask_spec):
        yield shard, mask[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]


def test_raw_masks_hold_the_likeliest_class_from_a_half_on_and_nothing_on_glass(store: SlideStore) -> None:
    expected = np.zeros((30, 50), np.uint8)
    expected[:, 8:32] = 1
    expected[8:16, 16:40] = 2
    expected[:, :10] = 0
    np.testing.assert_array_equal(raw_mask(store, "m"), expected)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12).map(str)), min_size=1, max_size=40))
@example([("a", "0"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "0"), ("c", "1")])  # cases of several classes
def test_cases_are_never_split_and_each_class_keeps_a_case_to_train_on(images: list[tuple[str, str]]) -> None:
    test = divide(images, 0.33)
    for name in {c for c, _ in images}:
        assert any(case not in test for c, case in images if c == name)


def test_a_third_of_equal_cases_is_tested_on() -> None:
    images = [(c, f"{c}{i}") for c in "ab" for i in range(9)]
    assert len(divide(images, 0.33)) == 6
