"""Self-supervised pretraining: VICReg is the paper's, the pool is shared evenly, the seed decides the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from textures import noise, tissue
from torch import Tensor, nn

from wsipipe.nn.encoders import create_encoder
from wsipipe.nn.train import Schedule, generator
from wsipipe.pseudolabel import pretrain as module
from wsipipe.pseudolabel.lattice import Lattice
from wsipipe.pseudolabel.pretrain import patch_pool, pretrain, vicreg_loss, view
from wsipipe.runtime import Compute
from wsipipe.store import SlideStore

LATTICE = Lattice(16, 32, 2)
ROOM_FOR_16 = 16 * 3 * 24 * 24
"""Bytes of 16 crops."""


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
def test_vicreg_equals_the_paper_in_plain_loops(n: int, d: int):
    a, b = embeddings(n, d, seed=n)
    s, v, c = slow_vicreg(a, b)
    assert min(s, v, c) > 0.01
    assert float(vicreg_loss(a, b)) == pytest.approx(25 * s + 25 * v + c, rel=1e-9)


def test_identical_embeddings_have_no_invariance_term():
    a, _ = embeddings()
    _, v, c = slow_vicreg(a, a)
    assert float(vicreg_loss(a, a)) == pytest.approx(25 * v + c, rel=1e-9)


def test_collapsed_embeddings_cost_the_whole_hinge_of_both_branches():
    a = torch.ones(8, 4, dtype=torch.float64)
    assert float(vicreg_loss(a, a)) == pytest.approx(50 * (1 - 0.01), rel=1e-9)


def test_spread_and_uncorrelated_embeddings_cost_nothing():
    a = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * 2
    assert float(vicreg_loss(a, a)) == pytest.approx(0, abs=1e-12)


def test_permuting_samples_or_swapping_branches_changes_nothing():
    a, b = embeddings()
    order = torch.randperm(len(a), generator=generator(1))
    assert float(vicreg_loss(a[order], b[order])) == pytest.approx(float(vicreg_loss(a, b)), rel=1e-12)
    assert float(vicreg_loss(b, a)) == pytest.approx(float(vicreg_loss(a, b)), rel=1e-12)
    assert float(vicreg_loss(a, b[order])) > float(vicreg_loss(a, b)) + 0.1


@pytest.fixture
def three_stores(tile_pictures: Callable[..., dict[str, Path]]) -> list[SlideStore]:
    """Slides of 8, 2 and 0 patches of 64 px, told apart by their brightness."""
    big, small = tissue((256, 128)), tissue((128, 64), 1) // 2
    glass = np.full((64, 64, 3), 243, np.uint8)
    paths = tile_pictures({"big": big, "small": small, "glass": glass}, patch_px=64)
    return [SlideStore(p) for p in paths.values()]


def test_the_pool_holds_patches_of_one_and_a_half_inputs(three_stores: list[SlideStore]):
    pool = patch_pool(three_stores, LATTICE, 0)
    assert pool.dtype == np.uint8
    assert pool.shape == (4 * (8 + 2), 3, 24, 24)


def test_what_the_pool_holds_are_shrunk_windows_of_the_patches(three_stores: list[SlideStore]):
    pool = patch_pool([three_stores[1]], LATTICE, 0)
    rgb = three_stores[1].read(three_stores[1].grid.window_of_px0((0, 0, 128, 64)))
    wanted = []
    for x0 in (0, 64):
        for dy in (0, 16):
            for dx in (0, 16):
                part = rgb[dy : dy + 48, x0 + dx : x0 + dx + 48].astype(float)
                wanted.append(np.floor(part.reshape(24, 2, 24, 2, 3).mean((1, 3)) + 0.5).transpose(2, 0, 1))
    key = lambda p: p.tobytes()  # noqa: E731 - the pool is a set of pictures
    assert sorted(map(key, pool)) == sorted(key(w.astype(np.uint8)) for w in wanted)


def test_a_full_pool_is_shared_evenly_over_slides(three_stores: list[SlideStore], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "POOL_BYTES", 3 * ROOM_FOR_16 // 2)
    pool = patch_pool(three_stores, LATTICE, 0)
    dark = (pool.mean((1, 2, 3)) < 120).sum()
    assert dark == len(pool) - dark > 0


def test_the_pool_keeps_to_its_memory(three_stores: list[SlideStore], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "POOL_BYTES", 3 * ROOM_FOR_16 // 2)
    assert patch_pool(three_stores, LATTICE, 0).nbytes <= module.POOL_BYTES


def test_the_seed_decides_which_patches_a_full_pool_takes(
    three_stores: list[SlideStore], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "POOL_BYTES", 3 * ROOM_FOR_16 // 2)
    pools = [patch_pool(three_stores, LATTICE, seed) for seed in (0, 0, 1, 2)]
    assert np.array_equal(pools[0], pools[1])
    assert not all(np.array_equal(pools[0], p) for p in pools[2:])


def test_without_any_patch_the_pool_is_empty_but_has_its_shape(three_stores: list[SlideStore]):
    assert patch_pool([three_stores[2]], LATTICE, 0).shape == (0, 3, 24, 24)
    assert patch_pool([], LATTICE, 0).shape == (0, 3, 24, 24)


def test_a_view_has_the_size_of_the_input_and_stays_in_range():
    x = torch.rand(16, 3, 24, 24, generator=generator(1))
    y = view(x, 16, generator(2))
    assert y.shape == (16, 3, 16, 16)
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    assert torch.equal(y, view(x, 16, generator(2)))
    assert not torch.equal(y, view(x, 16, generator(3)))


def pretrained(seed: int, steps: int) -> tuple[nn.Module, list[float]]:
    pool = np.stack([noise((48, 48), (0, 1, 3)[s % 3], s).transpose(2, 0, 1) // (1 + s % 4) for s in range(48)])
    torch.manual_seed(0)
    encoder = create_encoder("resnet18_quarter")
    torch.manual_seed(seed + 100)  # the global generator must not matter
    return encoder, pretrain(encoder, pool, 32, Schedule(steps, 2e-3), Compute(torch.device("cpu"), seed))


def test_pretraining_lowers_its_loss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH", 32)
    _, losses = pretrained(0, 40)
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.7  # without learning the two differ by less than 0.1


def test_pretraining_is_decided_by_its_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH", 16)
    (first, losses), (again, losses_again), (_, other) = pretrained(1, 3), pretrained(1, 3), pretrained(2, 3)
    assert losses == losses_again
    assert losses != other
    for (key, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_pretraining_leaves_the_callers_random_numbers_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH", 16)
    torch.manual_seed(4)
    wanted = torch.rand(3)
    encoder = create_encoder("resnet18_quarter")
    pool = np.stack([tissue((48, 48), s).transpose(2, 0, 1) for s in range(4)])
    torch.manual_seed(4)
    pretrain(encoder, pool, 32, Schedule(1, 1e-3), Compute(torch.device("cpu"), 0))
    assert torch.equal(torch.rand(3), wanted)
