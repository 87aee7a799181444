"""Affinities: offsets and lines counted by hand, every kernel against loops over the formulas, and the invariants."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from torch import Tensor

from wsipipe.labels import IGNORE
from wsipipe.pseudolabel.shared.affinity import (
    EPS,
    Pairs,
    affinities,
    boundary_loss,
    displacement_losses,
    line,
    neighbours,
    offsets,
    padded,
    pair_sets,
    path_maxima,
    sources,
)

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


def random_seeds(seed: int, h: int, w: int, classes: int = 3) -> Tensor:
    values = np.random.default_rng(seed).choice([*range(classes + 1), IGNORE], (2, h, w))
    return torch.from_numpy(values)


@given(RADII, st.integers(0, 999))
@examples(15)
def test_pairs_are_sorted_as_their_ends_say_and_an_unsure_end_removes_them(radius: int, seed: int):
    seeds = random_seeds(seed, radius + 2, 2 * radius + 1)
    pairs = pair_sets(seeds, radius)
    reach = radius - 1
    assert not (pairs.same_bg & pairs.same_fg | pairs.same_bg & pairs.different | pairs.same_fg & pairs.different).any()
    for b, (p, (dy, dx)), i, j in itertools.product(range(2), enumerate(offsets(radius)), range(3), range(3)):
        one, other = int(seeds[b, i, j + reach]), int(seeds[b, i + dy, j + reach + dx])
        sure = IGNORE not in (one, other)
        at = (b, p, i, j)
        assert bool(pairs.same_bg[at]) == (sure and one == other == 0)
        assert bool(pairs.same_fg[at]) == (sure and one == other and one > 0)
        assert bool(pairs.different[at]) == (sure and one != other)


def test_classes_above_20_take_part():
    pairs = pair_sets(torch.full((1, 4, 6), 28), 2)
    assert pairs.same_fg.all()


def slow_boundary_loss(a: Tensor, pairs: Pairs, by_class: bool) -> float:
    """L_B by loops; where a set is empty, nothing."""
    together: dict[int, list[float]] = {}
    bg, apart = [], []
    for at in np.ndindex(*a.shape):
        if pairs.same_fg[at]:
            together.setdefault(int(pairs.label[at]), []).append(-math.log(float(a[at]) + EPS))
        elif pairs.same_bg[at]:
            bg.append(-math.log(float(a[at]) + EPS))
        elif pairs.different[at]:
            apart.append(-math.log(1 - float(a[at]) + EPS))
    groups = list(together.values()) if by_class else [[*itertools.chain(*together.values())]]
    fg = sum(sum(g) / (len(g) + EPS) for g in groups) / max(1, len(groups))
    return fg / 2 + sum(bg) / (len(bg) + EPS) / 2 + sum(apart) / (len(apart) + EPS)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_boundary_loss_equals_its_formula(by_class: bool, seed: int):
    a = affinities(random_map(seed, 6, 9, 2), 3)
    pairs = pair_sets(random_seeds(seed, 6, 9), 3)
    assert float(boundary_loss(a, pairs, by_class)) == pytest.approx(slow_boundary_loss(a, pairs, by_class), rel=1e-4)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize(
    ("seeds", "boundary"), [(IGNORE, 0.5), (0, 0.0), (2, 0.0)], ids=["unsure", "one background", "one class"]
)
def test_empty_sets_give_a_finite_loss_of_zero_with_a_gradient(seeds: int, boundary: float, by_class: bool):
    b = torch.full((1, 6, 9), boundary, requires_grad=True)
    pairs = pair_sets(torch.full((1, 6, 9), seeds), 3)
    loss = boundary_loss(affinities(b, 3), pairs, by_class)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=2 * EPS)
    assert torch.isfinite(b.grad).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_saturated_boundary_has_a_finite_loss(value: float):
    pairs = pair_sets(random_seeds(0, 6, 9), 3)
    assert torch.isfinite(boundary_loss(affinities(torch.full((2, 6, 9), value), 3), pairs, True))


def test_a_rare_class_weighs_as_much_as_a_common_one_only_if_asked():
    seeds = torch.full((1, 8, 12), 1)
    seeds[0, :2, :4] = 2
    a = torch.where(pair_sets(seeds, 2).label == 2, 0.1, 1.0)
    a[pair_sets(seeds, 2).different] = 0
    plain, fair = (float(boundary_loss(a, pair_sets(seeds, 2), by_class)) for by_class in (False, True))
    assert fair == pytest.approx(-math.log(0.1 + EPS) / 4, rel=1e-3)
    assert plain < fair / 3


def slow_displacement(d: Tensor, seeds: Tensor, radius: int) -> tuple[float, float]:
    """L_fg and L_bg by loops over the pairs."""
    fg, bg = [], []
    reach = radius - 1
    for b in range(len(d)):
        for i, j in itertools.product(range(d.shape[2] - reach), range(reach, d.shape[3] - reach)):
            for dy, dx in offsets(radius):
                one, other = int(seeds[b, i, j]), int(seeds[b, i + dy, j + dx])
                for c, t in enumerate((dy, dx)):
                    dij = float(d[b, c, i, j] - d[b, c, i + dy, j + dx])
                    if one == other == 0:
                        bg.append(abs(dij))
                    elif one == other != IGNORE:
                        fg.append(abs(dij - t))
    return sum(fg) / len(fg), sum(bg) / len(bg)


@pytest.mark.parametrize("seed", range(3))
def test_the_displacement_losses_equal_their_formulas(seed: int):
    d = torch.randn(2, 2, 6, 9, generator=torch.Generator().manual_seed(seed))
    seeds = random_seeds(seed, 6, 9)
    got = displacement_losses(d, pair_sets(seeds, 3), 3)
    assert [float(v) for v in got] == pytest.approx(slow_displacement(d, seeds, 3), rel=1e-4)


@pytest.mark.parametrize(
    ("seed", "empty"), [(IGNORE, (True, True)), (0, (True, False)), (2, (False, True))], ids=["unsure", "none", "class"]
)
def test_displacement_losses_of_no_pairs_are_zero_with_a_finite_gradient(seed: int, empty: tuple[bool, bool]):
    d = torch.randn(1, 2, 6, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = displacement_losses(d, pair_sets(torch.full((1, 6, 9), seed), 3), 3)
    sum(losses).backward()
    for loss, none in zip(losses, empty, strict=True):
        assert torch.isfinite(loss)
        assert (float(loss.detach()) == 0) == none
    assert torch.isfinite(d.grad).all()


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_pointing_to_the_centre_costs_nothing_and_a_common_shift_changes_nothing(dy: float, dx: float):
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    to_centre = torch.stack([4 - y, 7 - x]).unsqueeze(0)
    seeds = torch.full((1, 8, 12), 1)
    seeds[:, :, :6] = 0
    pairs = pair_sets(seeds, 4)
    shifted = to_centre + torch.tensor([dy, dx]).view(1, 2, 1, 1)
    (fg, bg), (fg_shifted, bg_shifted) = (displacement_losses(d, pairs, 4) for d in (to_centre, shifted))
    assert float(fg) == 0
    assert float(bg) > 0.5
    torch.testing.assert_close((fg_shifted, bg_shifted), (fg, bg), atol=1e-4, rtol=1e-4)
