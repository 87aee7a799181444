"""The losses of self-supervision equal their papers' equations in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wsipipe.nn.train import generator
from wsipipe.pretrain.losses import byol_loss, dino_loss, simclr_loss, vicreg_loss


def embeddings(n: int = 12, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1.0, 2.0, 0.9]) + 3
    return a, a + 0.3 * torch.randn(n, d, generator=g, dtype=torch.float64)


def slow_vicreg(z1: Tensor, z2: Tensor) -> tuple[float, float, float]:
    """Invariance, variance and covariance in plain loops: equations 1 to 5.

    As in the authors' code, the invariance is also divided by d, which equation 5 is not.
    """
    a, b = z1.tolist(), z2.tolist()
    n, d = len(a), len(a[0])
    invariance = sum((a[i][j] - b[i][j]) ** 2 for i in range(n) for j in range(d)) / n / d
    variance = covariance = 0.0
    for z in (a, b):
        mean = [sum(z[i][j] for i in range(n)) / n for j in range(d)]
        c = [
            [sum((z[i][j] - mean[j]) * (z[i][k] - mean[k]) for i in range(n)) / (n - 1) for k in range(d)]
            for j in range(d)
        ]
        variance += sum(max(0.0, 1 - math.sqrt(c[j][j] + 1e-4)) for j in range(d)) / d
        covariance += sum(c[j][k] ** 2 for j in range(d) for k in range(d) if j != k) / d
    return invariance, variance, covariance


@pytest.mark.parametrize(("n", "d"), [(12, 5), (3, 5), (40, 5)])
def test_vicreg_equals_the_paper_in_plain_loops(n: int, d: int) -> None:
    a, b = embeddings(n, d, seed=n)
    s, v, c = slow_vicreg(a, b)
    assert min(s, v, c) > 0.01
    assert float(vicreg_loss(a, b)) == pytest.approx(25 * s + 25 * v + c, rel=1e-9)


def test_identical_embeddings_have_no_invariance_term() -> None:
    a, _ = embeddings()
    _, v, c = slow_vicreg(a, a)
    assert float(vicreg_loss(a, a)) == pytest.approx(25 * v + c, rel=1e-9)


def test_collapsed_embeddings_cost_the_whole_hinge_of_both_branches() -> None:
    a = torch.ones(8, 4, dtype=torch.float64)
    assert float(vicreg_loss(a, a)) == pytest.approx(50 * (1 - 0.01), rel=1e-9)


def test_spread_and_uncorrelated_embeddings_cost_nothing() -> None:
    a = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * 2
    assert float(vicreg_loss(a, a)) == pytest.approx(0, abs=1e-12)


def test_permuting_samples_or_swapping_branches_changes_nothing() -> None:
    a, b = embeddings()
    order = torch.randperm(len(a), generator=generator(1))
    assert float(vicreg_loss(a[order], b[order])) == pytest.approx(float(vicreg_loss(a, b)), rel=1e-12)
    assert float(vicreg_loss(b, a)) == pytest.approx(float(vicreg_loss(a, b)), rel=1e-12)
    assert float(vicreg_loss(a, b[order])) > float(vicreg_loss(a, b)) + 0.1


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def slow_simclr(z1: Tensor, z2: Tensor, t: float) -> float:
    """Equation 1 of SimCLR for each of the 2 N views and its partner, then their mean."""
    z = z1.tolist() + z2.tolist()
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(math.exp(cosine(z[i], z[k]) / t) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(cosine(z[i], z[j]) / t) / others)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("n", [2, 9])
def test_simclr_equals_the_paper_in_plain_loops(n: int, temperature: float) -> None:
    a, b = embeddings(n, 5, seed=n)
    assert float(simclr_loss(a, b, temperature)) == pytest.approx(slow_simclr(a, b, temperature), rel=1e-9)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_simclr_knows_directions_not_lengths_and_prefers_partners(seed: int, scale: float) -> None:
    a = torch.eye(6, 8, dtype=torch.float64)
    b = a + 0.1 * torch.randn(6, 8, generator=generator(seed), dtype=torch.float64)
    assert float(simclr_loss(a * scale, b)) == pytest.approx(float(simclr_loss(a, b)), rel=1e-9)
    assert float(simclr_loss(a, b)) < float(simclr_loss(a, b.roll(1, 0))) - 1


def test_simclr_of_embeddings_that_are_all_alike_is_the_logarithm_of_the_others() -> None:
    a = torch.ones(5, 3, dtype=torch.float64)
    assert float(simclr_loss(a, a)) == pytest.approx(math.log(9), rel=1e-9)


def test_byol_equals_the_paper_in_plain_loops_and_gives_the_target_no_gradient() -> None:
    a, b = embeddings(7, 5, seed=3)
    a.requires_grad_()
    b.requires_grad_()
    wanted = sum(2 - 2 * cosine(p, q) for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 7
    loss = byol_loss(a, b)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-9)
    loss.backward()
    assert a.grad is not None
    assert b.grad is None


def test_byol_runs_from_nought_for_the_same_direction_to_four_for_the_opposite() -> None:
    a, _ = embeddings()
    assert float(byol_loss(a, 3 * a)) == pytest.approx(0, abs=1e-12)
    assert float(byol_loss(a, -a)) == pytest.approx(4)


def slow_softmax(x: list[float]) -> list[float]:
    e = [math.exp(v - max(x)) for v in x]
    return [v / sum(e) for v in e]


def test_dino_equals_the_paper_in_plain_loops_and_gives_the_teacher_no_gradient() -> None:
    student, teacher = (v / 10 for v in embeddings(6, 5, seed=4))
    student.requires_grad_()
    teacher.requires_grad_()
    centre = torch.tensor([0.1, -0.2, 0.0, 0.3, 0.05], dtype=torch.float64)
    wanted = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = slow_softmax([(v - c) / 0.04 for v, c in zip(t, centre.tolist(), strict=True)])
        q = slow_softmax([v / 0.1 for v in s])
        wanted -= sum(x * math.log(y) for x, y in zip(p, q, strict=True)) / 6
    loss = dino_loss(student, teacher, centre)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-9)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
