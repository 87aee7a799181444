"""`features/` of a store: what is written is read, keys and damage are respected, and stock zarr agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.examples import examples

from wsipipe.errors import ConfigError, StoreError
from wsipipe.store import SlideStore
from wsipipe.store.features import CHUNK_CELLS, Features, chunks_of, feature_names, open_features
from wsipipe.store.info import describe
from wsipipe.store.verify import verify

SHAPE = (50, 70, 5)


def cells_of(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int32).reshape(-1, 2)


def opened(store: SlideStore, made_of: str = "a", shape: tuple[int, int, int] = SHAPE) -> Features:
    return open_features(store, "net-1", "64_128_2", shape, made_of)


def values(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, SHAPE[2])).astype(np.float32)


@examples(25, HealthCheck.function_scoped_fixture)
@given(
    st.lists(st.tuples(st.integers(0, 49), st.integers(0, 69)), min_size=1, max_size=40, unique=True),
    st.lists(st.tuples(st.integers(0, 49), st.integers(0, 69)), max_size=20, unique=True),
    st.integers(0, 99),
)
def test_what_is_written_is_read_as_float16_and_the_rest_is_nan(
    store: SlideStore, first: Any, second: Any, seed: int
) -> None:
    features = opened(store, f"{sorted(first)} {sorted(second)} {seed}")  # a fresh array for each example
    wanted = np.full(SHAPE, np.nan, np.float32)
    for pairs, s in ((first, seed), (second, seed + 1)):
        cells, v = cells_of(*pairs), values(len(pairs), s)
        features.write(cells, v)
        wanted[cells[:, 0], cells[:, 1]] = v.astype(np.float16)
    every = np.argwhere(np.ones(SHAPE[:2])).astype(np.int32)
    np.testing.assert_array_equal(features.read(every).reshape(SHAPE), wanted)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(str(features.path))[...]), wanted.astype(np.float16))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=30))
def test_the_chunks_of_cells_hold_each_cell_once(pairs: list[tuple[int, int]]) -> None:
    cells = cells_of(*pairs)
    found = list(chunks_of(cells))
    assert sorted(i for _, inside in found for i in inside.tolist()) == list(range(len(cells)))
    for chunk, inside in found:
        assert (cells[inside] // CHUNK_CELLS == chunk).all()


def test_features_of_other_things_are_replaced_and_of_the_same_kept(store: SlideStore) -> None:
    cells = cells_of((3, 4))
    opened(store).write(cells, values(1))
    assert not np.isnan(opened(store).read(cells)).any()
    assert np.isnan(opened(store, "b").read(cells)).all()
    opened(store, "b").write(cells, values(1))
    assert np.isnan(opened(store, "b", (50, 70, 6)).read(cells)).all()
    assert feature_names(SlideStore(store.path)) == [("net-1", "64_128_2")]
    assert not list(store.path.parent.glob(".*partial"))


def test_values_that_float16_does_not_hold_are_refused_and_nothing_is_written(store: SlideStore) -> None:
    features = opened(store)
    for bad in (1e6, np.nan, np.inf):
        with pytest.raises(StoreError, match="features above 65504 or not finite"):
            features.write(cells_of((0, 0)), np.full((1, 5), bad, np.float32))
    assert np.isnan(features.read(cells_of((0, 0)))).all()


def test_names_must_be_plain(store: SlideStore) -> None:
    with pytest.raises(ConfigError, match="use letters, digits"):
        open_features(store, "../net", "a", SHAPE, "x")


def chunk_file(features: Features) -> Path:
    return features.path / "c" / "0" / "0" / "0"


def test_a_damaged_chunk_is_found_by_verify_and_read_as_not_computed(
    store: SlideStore, caplog: pytest.LogCaptureFixture
) -> None:
    features = opened(store)
    features.write(cells_of((0, 0), (40, 40)), values(2))
    assert verify(store.path).ok
    data = bytearray(chunk_file(features).read_bytes())
    data[len(data) // 2] ^= 255
    chunk_file(features).write_bytes(data)
    (damage,) = verify(store.path).damage
    assert damage.where == "features/net-1/64_128_2/c/0/0/0"
    assert "cannot be read" in damage.what
    assert "it will be computed again" in damage.what
    read = opened(store).read(cells_of((0, 0), (40, 40)))
    assert np.isnan(read[0]).all()
    assert not np.isnan(read[1]).any()
    assert "is damaged" in caplog.text
    opened(store).write(cells_of((0, 0)), values(1))
    assert verify(store.path).ok


def test_a_missing_chunk_is_no_damage_but_changed_metadata_and_strange_files_are(store: SlideStore) -> None:
    features = opened(store)
    features.write(cells_of((0, 0)), values(1))
    chunk_file(features).unlink()
    assert verify(store.path).ok
    (features.path / "stray").write_text("x")
    assert [d.where for d in verify(store.path).damage] == ["features/net-1/64_128_2/stray"]
    (features.path / "stray").unlink()
    meta = features.path / "zarr.json"
    meta.write_text(meta.read_text().replace('"digest": "a"', '"digest": "b"'))
    assert [d.where for d in verify(store.path).damage] == ["features/net-1/64_128_2/zarr.json"]


def test_info_names_the_features(store: SlideStore) -> None:
    opened(store).write(cells_of((0, 0)), values(1))
    assert "features   net-1: cells 64_128_2 (instance, seen, shrink), 0.0 MB" in describe(store.path)
