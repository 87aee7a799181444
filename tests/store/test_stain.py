"""Evening out stains: densities are scaled, glass stays white, and stores only read otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsipipe.geometry import Window
from wsipipe.store import SlideStore, stain
from wsipipe.store.info import describe
from wsipipe.store.verify import verify

gamma = st.tuples(*[st.floats(stain.MIN_GAMMA, stain.MAX_GAMMA)] * 3)


def density(rgb: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(rgb, 1) / 255)


@given(gamma)
def test_tables_rise_from_black_to_white(g: tuple[float, float, float]) -> None:
    table = stain.gamma_tables(g)
    assert (table.shape, table.dtype) == ((3, 256), np.uint8)
    assert (np.diff(table.astype(int)) >= 0).all()
    assert table[:, [0, 255]].tolist() == [[0, 255]] * 3


def test_a_gamma_of_one_changes_nothing() -> None:
    np.testing.assert_array_equal(stain.gamma_tables((1, 1, 1)), [np.arange(256)] * 3)


@given(gamma, st.integers(0, 2), st.integers(1, 254))
def test_optical_density_is_scaled_by_gamma(g: tuple[float, float, float], c: int, level: int) -> None:
    got, wanted = stain.gamma_tables(g)[c, level], 255 * np.exp(-g[c] * density(np.array(level)))
    assert abs(float(got) - wanted) <= 0.5 + 1e-9


@given(arrays(np.uint8, (5, 7, 3)), arrays(bool, (5, 7)))
def test_densities_are_those_of_every_pixel_of_tissue(rgb: np.ndarray, tissue: np.ndarray) -> None:
    np.testing.assert_allclose(stain.density_sum(rgb, tissue), density(rgb[tissue]).sum(0), atol=1e-9)


@given(st.tuples(*[st.floats(0.0, 5.0)] * 3))
def test_gammas_take_the_mean_to_the_reference_or_as_near_as_they_may(mean: tuple[float, float, float]) -> None:
    for g, found, wanted in zip(stain.gamma_of(mean), mean, stain.REFERENCE_OD, strict=True):
        assert stain.MIN_GAMMA <= g <= stain.MAX_GAMMA
        if stain.MIN_GAMMA < g < stain.MAX_GAMMA:
            assert g * found == pytest.approx(wanted, abs=1e-3)


@given(st.tuples(*[st.floats(0.7, 2.0)] * 3))
def test_one_tissue_stained_twice_looks_the_same(g: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    weak = rng.integers(150, 251, (40, 40, 3)).astype(np.uint8)
    strong = stain.apply_tables(np.moveaxis(weak, -1, 0), stain.gamma_tables(g)).transpose(1, 2, 0)
    whole = np.ones((40, 40), bool)
    seen = []
    for rgb in (weak, strong):
        found = stain.gamma_of(stain.density_sum(rgb, whole) / whole.sum())
        seen.append(stain.apply_tables(np.moveaxis(rgb, -1, 0), stain.gamma_tables(found)).astype(int))
    assert np.abs(seen[0] - seen[1]).mean() < 2


def test_the_memory_keeps_its_order() -> None:
    last = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8).transpose(0, 3, 1, 2)
    out = stain.apply_tables(last, stain.gamma_tables((2, 1, 0.5)))
    assert out.strides == last.strides
    slow = np.stack([stain.gamma_tables((2, 1, 0.5))[c][last[:, c]] for c in range(3)], 1)
    np.testing.assert_array_equal(out, slow)


def test_a_store_reads_by_the_tables_and_keeps_its_pixels(store: SlideStore) -> None:
    w = Window(40, 30, 200, 150)
    stored, digest, plain = np.asarray(store.pixels().read(w), np.uint8), store.digest, store.read(w)
    store.normalise_stain()
    again = SlideStore(store.path)
    for seen in (store, again):
        table = stain.gamma_tables(seen.meta["stain_gamma"])
        np.testing.assert_array_equal(seen.read(w), np.moveaxis(stain.apply_tables(stored, table), 0, -1))
        np.testing.assert_array_equal(seen.read_batch([w])[0], np.moveaxis(seen.read(w), -1, 0))
        np.testing.assert_array_equal(seen.pixels().read(w), stored)
    assert again.is_normalised
    assert again.digest != digest
    assert verify(store.path).damage == ()
    assert "stain      normalised when reading, gamma " in describe(store.path)
    store.normalise_stain(False)
    assert (SlideStore(store.path).digest, SlideStore(store.path).is_normalised) == (digest, False)
    np.testing.assert_array_equal(store.read(w), plain)
    assert "stain" not in describe(store.path)


def test_the_mean_density_of_tissue_is_then_the_reference(store: SlideStore) -> None:
    store.normalise_stain()
    height, width = store.grid.level_shape(0)
    whole = Window(0, 0, width, height)
    tissue = store.labels("tissue").read(whole) == 1
    mean = stain.density_sum(store.read(whole), tissue) / tissue.sum()
    np.testing.assert_allclose(mean, stain.REFERENCE_OD, rtol=0.15)  # measured on a coarser level, which is paler
