"""Losses of the boundary network against loops over their formulas, and their invariants."""

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
from wsipipe.pseudolabel.methods.irnet.losses import EPS, Pairs, boundary_loss, displacement_losses, pair_sets
from wsipipe.pseudolabel.shared.affinity import affinities, offsets

RADII = st.integers(2, 5)


def random_map(seed: int, h: int, w: int, b: int = 1) -> Tensor:
    return torch.rand(b, h, w, generator=torch.Generator().manual_seed(seed))


def random_seeds(seed: int, h: int, w: int, classes: int = 3) -> Tensor:
    values = np.random.default_rng(seed).choice([*range(classes + 1), IGNORE], (2, h, w))
    return torch.from_numpy(values)


@given(RADII, st.integers(0, 999))
@examples(15)
def test_pairs_are_sorted_as_their_ends_say_and_an_unknown_end_removes_them(radius: int, seed: int):
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
    ("seeds", "boundary"), [(IGNORE, 0.5), (0, 0.0), (2, 0.0)], ids=["unknown", "one background", "one class"]
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
    ("seed", "empty"),
    [(IGNORE, (True, True)), (0, (True, False)), (2, (False, True))],
    ids=["unknown", "none", "class"],
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
