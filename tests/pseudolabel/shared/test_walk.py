"""The random walk: against the dense matrix written from the formulas, and what holds of every walk."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from torch import Tensor

from wsipipe.pseudolabel.shared.walk import Walk, random_walk


def random_map(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def dense_affinity(boundary: Tensor, radius: int) -> Tensor:
    """A of a map [h, w]: float64 [h w, h w], every pair of cells looked at by itself."""
    h, w = boundary.shape
    cells = list(itertools.product(range(h), range(w)))
    out = torch.eye(h * w, dtype=torch.float64)
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            dy, dx = v - y, u - x
            if i != j and dy * dy + dx * dx < radius * radius:
                path = []
                for k, z in itertools.product(range(min(y, v), max(y, v) + 1), range(min(x, u), max(x, u) + 1)):
                    if abs(dy * (z - x) - dx * (k - y)) / math.hypot(dy, dx) < 1 - 1e-9:
                        path.append(float(boundary[k, z]))
                out[i, j] = 1 - max(path)
    return out


def transitions(affinity: Tensor, beta: float) -> Tensor:
    """T: columns of A^beta divided by their sums."""
    powers = affinity**beta
    return powers / powers.sum(0, keepdim=True)


def dense_walk(maps: Tensor, boundary: Tensor, how: Walk) -> Tensor:
    """M* of maps [K, h, w] by powers of the dense T."""
    t = torch.linalg.matrix_power(transitions(dense_affinity(boundary, how.radius), how.beta), how.steps)
    flat = (maps.double() * (1 - boundary.double())).flatten(1)
    return (flat @ t).view_as(maps)


def walk(maps: Tensor, boundary: Tensor, **how: float) -> Tensor:
    return random_walk(maps[None], boundary[None], Walk(**how))[0]


@pytest.mark.parametrize(("steps", "beta", "radius"), [(1, 10.0, 5), (4, 10.0, 5), (3, 1.0, 3), (7, 4.0, 2)])
def test_steps_equal_the_dense_matrix(steps: int, beta: float, radius: int):
    maps, boundary = random_map(0, 2, 7, 9), random_map(1, 7, 9) ** 3
    how = Walk(steps, beta, radius)
    expected = dense_walk(maps, boundary, how)
    torch.testing.assert_close(random_walk(maps[None], boundary[None], how)[0].double(), expected, atol=1e-5, rtol=1e-5)


def test_256_steps_equal_eight_squarings_of_the_dense_matrix():
    maps, boundary = random_map(2, 3, 8, 8), random_map(3, 8, 8) ** 4
    t = transitions(dense_affinity(boundary, 5), 10)
    for _ in range(8):
        t = t @ t
    expected = ((maps.double() * (1 - boundary.double())).flatten(1) @ t).view_as(maps)
    torch.testing.assert_close(walk(maps, boundary, steps=256).double(), expected, atol=1e-4, rtol=1e-4)
    double = random_walk(maps.double()[None], boundary.double()[None], Walk(256))[0]
    torch.testing.assert_close(double, expected, atol=1e-6, rtol=1e-6)


@given(st.integers(0, 999))
@examples(30)
def test_affinities_of_the_walk_are_symmetric_with_a_unit_diagonal_and_columns_of_t_sum_to_one(seed: int):
    """Read off the walk itself: one step from an impulse at i, unweighted by B at i, is row i of T."""
    boundary = random_map(seed, 4, 5) ** 3
    impulses = torch.eye(20).view(20, 4, 5) / (1 - boundary).clamp_min(1e-6)
    rows = walk(impulses, boundary, steps=1, radius=3).flatten(1)
    torch.testing.assert_close(rows.sum(0), torch.ones(20), atol=1e-4, rtol=1e-4)
    assert rows.min() >= 0
    assert rows.max() <= 1 + 1e-5
    unnormalised = rows / rows.diagonal()
    torch.testing.assert_close(unnormalised, unnormalised.T, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(6, 11), (1, 1), (1, 7), (3, 2)])
@pytest.mark.parametrize("steps", [0, 1, 4, 64])
def test_a_constant_without_boundaries_stays_as_it_is_also_at_the_border(shape: tuple[int, int], steps: int):
    maps = torch.full((2, *shape), 0.7)
    torch.testing.assert_close(walk(maps, torch.zeros(shape), steps=steps), maps)


@pytest.mark.parametrize("wall", [0, 5, 6, 11])
def test_nothing_leaks_across_a_wall(wall: int):
    boundary = torch.zeros(12, 12)
    boundary[:, wall] = 1
    maps = torch.zeros(1, 12, 12)
    maps[:, :, :wall] = random_map(4, 1, 12, wall)
    out = walk(maps, boundary, steps=256)
    assert (out[:, :, wall:] == 0).all()
    assert (out[:, :, :wall] > 0).all()


def test_mass_is_not_kept_a_cell_of_many_neighbours_counts_for_more():
    boundary = torch.zeros(12, 12)
    boundary[:, 6] = 1
    maps = torch.zeros(1, 12, 12)
    maps[0, 6, 3] = 1
    degree = dense_affinity(boundary, 5).sum(0).view(12, 12)[:, :6]
    expected = 72 * float(degree[6, 3] / degree.sum())
    assert expected > 1.2
    assert float(walk(maps, boundary, steps=256).sum()) == pytest.approx(expected, rel=1e-4)


def test_no_step_gives_the_map_without_its_boundaries():
    maps, boundary = random_map(5, 2, 6, 7), random_map(6, 6, 7)
    torch.testing.assert_close(walk(maps, boundary, steps=0), maps * (1 - boundary))


@given(st.integers(0, 999), st.integers(1, 12))
@examples(30)
def test_what_comes_out_lies_between_the_least_and_the_most_of_what_goes_in(seed: int, steps: int):
    maps, boundary = random_map(seed, 2, 5, 6), random_map(seed + 1, 5, 6) ** 2
    went_in = maps * (1 - boundary)
    out = walk(maps, boundary, steps=steps, radius=3)
    for k in range(2):
        assert out[k].min() >= went_in[k].min() - 1e-5
        assert out[k].max() <= went_in[k].max() + 1e-5


def test_in_a_closed_region_a_long_walk_ends_at_the_mean_by_degree():
    boundary = torch.full((9, 9), 1.0)
    boundary[2:7, 1:6] = random_map(7, 5, 5) * 0.1
    maps = random_map(8, 1, 9, 9)
    powers = dense_affinity(boundary, 5) ** 10
    degree = powers.sum(0).view(9, 9)[2:7, 1:6].float()
    inside = (maps * (1 - boundary))[0, 2:7, 1:6]
    mean = float((degree * inside).sum() / degree.sum())
    out = walk(maps, boundary, steps=300)
    torch.testing.assert_close(out[0, 2:7, 1:6], torch.full((5, 5), mean), atol=1e-4, rtol=1e-4)


def test_windows_and_channels_walk_by_themselves_and_nothing_given_is_changed():
    maps, boundary = random_map(9, 3, 2, 6, 8), random_map(10, 3, 6, 8) ** 2
    before = maps.clone(), boundary.clone()
    together = random_walk(maps, boundary, Walk(3))
    for b, k in itertools.product(range(3), range(2)):
        alone = random_walk(maps[b : b + 1, k : k + 1], boundary[b : b + 1], Walk(3))
        torch.testing.assert_close(together[b, k], alone[0, 0])
    torch.testing.assert_close((maps, boundary), before, atol=0, rtol=0)
    no_class = random_walk(torch.zeros(1, 1, 6, 8), boundary[:1])
    assert (no_class == 0).all(), "an absent class must stay absent"
