"""Affinities: offsets and lines counted by hand, every kernel against loops over the formulas, and the invariants."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from torch import Tensor

from wsipipe.pseudolabel.methods.irnet.losses import neighbours, sources
from wsipipe.pseudolabel.shared.affinity import affinities, line, offsets, padded, path_maxima

RADII = st.integers(2, 5)


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (5, 34), (10, 152)])
def test_offsets_are_distinct_within_the_radius_and_one_of_each_opposite_pair(radius: int, count: int):
    found = offsets(radius)
    assert len(found) == len(set(found)) == count
    assert not {(-dy, -dx) for dy, dx in found} & set(found)
    around = [
        (y, x) for y, x in itertools.product(range(-radius, radius + 1), repeat=2) if 0 < y * y + x * x < radius**2
    ]
    assert {*found, *((-dy, -dx) for dy, dx in found)} == set(around)


def slow_line(dy: int, dx: int) -> set[tuple[int, int]]:
    """Cells of the box whose distance to the straight line through both ends is below 1."""
    out = set()
    for y in range(min(0, dy), max(0, dy) + 1):
        for x in range(min(0, dx), max(0, dx) + 1):
            along = (y * dy + x * dx) / (dy * dy + dx * dx)
            if math.hypot(y - along * dy, x - along * dx) < 1 - 1e-9:
                out.add((y, x))
    return out


@pytest.mark.parametrize(("radius", "longest"), [(5, 11), (10, 22)])
def test_lines_hold_both_ends_and_all_near_cells(radius: int, longest: int):
    for offset in offsets(radius):
        assert {(0, 0), offset} <= set(line(offset))
        assert sorted(line(offset)) == sorted(slow_line(*offset))
    lengths = [len(line(o)) for o in offsets(radius)]
    assert (min(lengths), max(lengths)) == (2, longest)


@pytest.mark.parametrize(("offset", "count"), [((0, 3), 4), ((1, 2), 6), ((1, -2), 6), ((3, 3), 10), ((0, 9), 10)])
def test_lines_have_the_published_numbers_of_cells(offset: tuple[int, int], count: int):
    assert len(line(offset)) == count


def random_map(seed: int, h: int, w: int, b: int = 1) -> Tensor:
    return torch.rand(b, h, w, generator=torch.Generator().manual_seed(seed))


@given(RADII, st.integers(0, 999))
@examples(15)
def test_affinities_equal_one_minus_the_highest_boundary_on_the_line(radius: int, seed: int):
    boundary = random_map(seed, radius + 3, 2 * radius + 2, 2)
    got = affinities(boundary, radius)
    reach = radius - 1
    assert got.shape == (2, len(offsets(radius)), 4, 4)
    for b, (p, offset), i, j in itertools.product(range(2), enumerate(offsets(radius)), range(4), range(4)):
        path = [float(boundary[b, i + y, j + reach + x]) for y, x in slow_line(*offset)]
        assert float(got[b, p, i, j]) == pytest.approx(1 - max(path))


def test_training_pairs_of_a_128_map_are_as_many_as_published():
    assert affinities(torch.zeros(1, 128, 128), 10).shape == (1, 152, 119, 110)


@given(st.integers(0, 999))
@examples(20)
def test_no_boundary_lets_everything_pass_a_full_one_nothing_and_more_of_it_never_helps(seed: int):
    low = random_map(seed, 9, 14)
    more = low + (1 - low) * random_map(seed + 1, 9, 14)
    assert (affinities(torch.zeros(1, 9, 14), 5) == 1).all()
    assert (affinities(torch.ones(1, 9, 14), 5) == 0).all()
    assert (affinities(more, 5) <= affinities(low, 5)).all()


def test_the_gradient_of_a_path_goes_to_its_highest_cell():
    boundary = random_map(3, 8, 12).requires_grad_()
    path_maxima(boundary, 4)[0, 7, 2, 3].backward()
    dy, dx = offsets(4)[7]
    path = [(2 + y, 3 + 3 + x) for y, x in line((dy, dx))]
    top = max(path, key=lambda c: float(boundary[0, c[0], c[1]].detach()))
    expected = torch.zeros(1, 8, 12)
    expected[0, top[0], top[1]] = 1
    torch.testing.assert_close(boundary.grad, expected)


def test_padding_makes_every_cell_a_source():
    values = random_map(0, 3, 4)
    around = padded(values, 3, -1.0)
    torch.testing.assert_close(sources(around, 3), values)
    far = neighbours(around, 3)
    for (p, (dy, dx)), i, j in itertools.product(enumerate(offsets(3)), range(3), range(4)):
        inside = i + dy < 3 and 0 <= j + dx < 4
        assert float(far[0, p, i, j]) == (float(values[0, i + dy, j + dx]) if inside else -1)
