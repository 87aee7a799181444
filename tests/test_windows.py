"""Windows cover their map, and Hann weights blend them into a partition of unity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from wsipipe.geometry import Window
from wsipipe.windows import WindowLattice, blend_weight, hann, starts


@given(st.integers(1, 2000), st.integers(1, 300), st.data())
def test_starts_cover_stay_inside_and_end_at_the_border(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(max(1, window // 10), window))
    found = starts(length, window, stride)
    seen = np.zeros(length, int)
    for s in found:
        seen[s : s + window] += 1
    assert (seen > 0).all()
    assert found == sorted(set(found))
    assert found[0] == 0
    if length >= window:
        assert found[-1] + window == length
        assert all(s >= 0 for s in found)
    else:
        assert found == [0]


def test_starts_step_by_the_stride_but_for_the_last() -> None:
    assert starts(100, 40, 20) == [0, 20, 40, 60]
    assert starts(105, 40, 20) == [0, 20, 40, 60, 65]
    assert starts(40, 40, 20) == [0]
    assert starts(7, 40, 20) == [0]


@given(st.integers(1, 1024))
def test_hann_is_positive_symmetric_and_its_formula(n: int) -> None:
    w = hann(n)
    assert w.dtype == np.float32
    assert (w > 0).all()
    assert (w <= 1).all()
    np.testing.assert_allclose(w, w[::-1], atol=1e-6)
    np.testing.assert_allclose(w, [np.sin(np.pi * (i + 0.5) / n) ** 2 for i in range(n)], atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_hann_windows_sum_to_a_constant_inside(parts: int) -> None:
    window, stride = 24 * parts, 24
    total = np.zeros(window * 6)
    for s in range(0, len(total) - window + 1, stride):
        total[s : s + window] += hann(window)
    np.testing.assert_allclose(total[window:-window], parts / 2, atol=1e-5)


@pytest.mark.parametrize("share", [100, 75, 50, 33, 25])
@pytest.mark.parametrize("size", [(300, 217), (64, 64), (65, 128), (40, 90)])
def test_normalised_weights_are_a_partition_of_unity(share: int, size: tuple[int, int]) -> None:
    window = 64
    stride = max(1, window * share // 100)
    weight = blend_weight(window)
    height, width = (max(n, window) for n in size)
    total = np.zeros((height, width))
    places = [(y, x) for y in starts(size[0], window, stride) for x in starts(size[1], window, stride)]
    for y, x in places:
        total[y : y + window, x : x + window] += weight
    assert (total[: size[0], : size[1]] > 0).all()
    unity = np.zeros_like(total)
    blended = np.zeros_like(total)
    truth = np.add.outer(np.arange(height) * 0.01, np.arange(width) * 0.02)
    for y, x in places:
        part = np.s_[y : y + window, x : x + window]
        unity[part] += weight / total[part]
        blended[part] += weight / total[part] * truth[part]
    np.testing.assert_allclose(unity[: size[0], : size[1]], 1, atol=1e-6)
    np.testing.assert_allclose(blended[: size[0], : size[1]], truth[: size[0], : size[1]], atol=1e-5)


def test_blend_weight_is_separable() -> None:
    w = blend_weight(16)
    assert w.shape == (16, 16)
    assert w.dtype == np.float32
    np.testing.assert_allclose(w, w.T)
    np.testing.assert_allclose(w[3, 5], hann(16)[3] * hann(16)[5])


def test_constant_weights_are_1_and_other_blends_are_refused() -> None:
    np.testing.assert_array_equal(blend_weight(5, "constant"), np.ones((5, 5), np.float32))
    with pytest.raises(ValueError, match="blend 'gauss' is not one of hann, constant"):
        blend_weight(8, "gauss")


def squares_met(a: Window, b: Window) -> bool:
    """Whether two windows share a square of 64 px, counted from the map's origin."""

    def squares(w: Window) -> set[tuple[int, int]]:
        rows = range(w.y_px // 64, -(-(w.y_px + w.height_px) // 64))
        return {(r, c) for r in rows for c in range(w.x_px // 64, -(-(w.x_px + w.width_px) // 64))}

    return not squares(a).isdisjoint(squares(b))


@given(st.data())
@examples(60)
def test_windows_are_wanted_where_patches_are_and_found_where_an_area_is(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 500), st.integers(1, 500)))
    side, stride = data.draw(st.integers(16, 150)), data.draw(st.integers(20, 200))
    place = st.tuples(st.integers(0, 499), st.integers(0, 499))
    patches = [
        Window(min(x, size[0] - 1), min(y, size[1] - 1), 90, 70) for x, y in data.draw(st.lists(place, max_size=3))
    ]
    every = [Window(x, y, side, side) for y in starts(size[1], side, stride) for x in starts(size[0], side, stride)]
    inside = [w for w in every if any(squares_met(w, p) for p in patches)]
    cover = WindowLattice.plan(size, side, stride, patches)
    assert list(cover.touching(Window(0, 0, *size))) == inside
    assert list(WindowLattice.plan(size, side, stride).touching(Window(0, 0, *size))) == every
    x, y = data.draw(place)
    area = Window(x, y, data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300)))
    touching = [
        w
        for w in inside
        if w.x_px < x + area.width_px and w.x_px + side > x and w.y_px < y + area.height_px and w.y_px + side > y
    ]
    assert list(cover.touching(area)) == touching
    assert cover.count(area) == len(touching)
