"""When pretraining stops: the effective rank is RankMe's, and flat curves are told from those that move."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import pretrain_tissue as tissue_of
from torch import Tensor, nn

from wsipipe.nn.early_stopping import is_flat
from wsipipe.pretrain.monitor import EarlyStopping, effective_rank
from wsipipe.pretrain.objectives import objective
from wsipipe.pretrain.views import Pool, Views
from wsipipe.runtime.device import ComputeContext

CPU = ComputeContext(torch.device("cpu"))


def slow_rank(z: np.ndarray) -> float:
    """exp(-sum p ln p) of the singular values' shares, from the eigenvalues of the centred Gram matrix."""
    z = z - z.mean(0)
    s = np.sqrt(np.clip(np.linalg.eigvalsh(z.T @ z), 0, None))
    p = s[s > 1e-12 * s.max()] / s.sum()
    return math.exp(-sum(v * math.log(v) for v in p))


@given(st.integers(3, 40), st.integers(1, 8), st.integers(0, 999))
def test_the_effective_rank_equals_the_formula_written_out(n: int, d: int, seed: int) -> None:
    z = np.random.default_rng(seed).standard_normal((n, d)) * np.arange(1, d + 1)
    assert effective_rank(torch.from_numpy(z)) == pytest.approx(slow_rank(z), rel=1e-4)
    assert effective_rank(torch.from_numpy(z)) <= min(n, d) + 1e-6


def test_the_effective_rank_counts_directions_and_knows_neither_scale_nor_mean() -> None:
    square = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert effective_rank(square) == pytest.approx(2)
    assert effective_rank(100 * square + 7) == pytest.approx(2)
    assert effective_rank(torch.tensor([[1.0, 2], [2, 4], [3, 6]])) == pytest.approx(1)
    assert effective_rank(torch.full((5, 3), 4.2)) == 0


def falling(n: int) -> list[float]:
    return [10 * 0.9**i for i in range(n)]


@pytest.mark.parametrize(
    ("losses", "ranks", "flat"),
    [
        (falling(20), [5.0] * 20, False),
        ([5.0] * 20, [2 + 0.2 * i for i in range(20)], False),
        ([5.0] * 20, [7.0] * 20, True),
        ([*falling(10), *[falling(10)[-1]] * 4], [7.0] * 14, True),
        ([*falling(10), *[falling(10)[-1]] * 3], [7.0] * 13, False),
        ([3 + i for i in range(9)], [9.0 - i for i in range(9)], True),
        ([5 * 0.999**i for i in range(9)], [7.0] * 9, True),
        ([-(1.2**i) for i in range(9)], [7.0] * 9, False),
        ([5.0] * 4, [7.0] * 4, False),
    ],
    ids=[
        "loss falls",
        "rank rises",
        "both flat",
        "plateau",
        "too early",
        "worse",
        "creeps",
        "below zero",
        "few checks",
    ],
)
def test_synthetic_curves_are_flat_only_where_neither_moved_on(
    losses: list[float], ranks: list[float], flat: bool
) -> None:
    assert is_flat(losses, ranks, 4) is flat


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=12), st.lists(st.floats(0.1, 9), min_size=12, max_size=12))
def test_without_patience_nothing_is_ever_flat(losses: list[float], ranks: list[float]) -> None:
    assert not is_flat(losses, ranks[: len(losses)], 0)


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 99))
def test_noise_smaller_than_a_percent_does_not_keep_a_training_alive(count: int, patience: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = (5 + 0.02 * rng.random(count)).tolist()
    assert is_flat(losses, [3.0] * count, patience) is (count > patience)


def watch(steps: int, patience: int = 2) -> tuple[EarlyStopping, nn.Module]:
    torch.manual_seed(0)
    model = objective("vicreg", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), 12, 10)
    pool = Pool(tissue_of.patches(20), np.zeros(20, np.int64))
    return EarlyStopping(model, pool, Views(16), CPU, steps, patience), model


def test_a_watch_looks_every_so_often_and_stops_a_training_that_stands_still_while_the_rate_falls() -> None:
    w, model = watch(40)
    model.train()
    stops = [w(step) for step in range(28)]
    assert [c[0] for c in w.checks] == list(range(2, 29, 2))
    assert [step + 1 for step, stop in enumerate(stops) if stop] == [26, 28]  # 22, 24 and 26 are the first to count
    assert len({c[1:] for c in w.checks}) == 1, "the same network is judged on other views"
    assert model.training


def test_what_a_watch_remembers_comes_back() -> None:
    w, _ = watch(1)
    w(0)
    seeded_init, _ = watch(1)
    seeded_init.load_state_dict(w.state_dict())
    assert seeded_init.checks == w.checks


def test_features_that_say_the_same_of_every_patch_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3)).view(-1, 1) * torch.ones(12)

    torch.manual_seed(0)
    model = objective("vicreg", Same(), 12, 10)
    EarlyStopping(model, Pool(tissue_of.patches(20), np.zeros(20, np.int64)), Views(16), CPU, 1, 0)(0)
    assert "nearly collapsed (effective rank 1.0)" in caplog.text
