"""The loss by its formulas, what 255 and a teacher change, and how a robust entropy forgives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.segment.losses import corrected_by_teacher, noise_robust_entropy, segmentation_loss, soft_dice_loss


def slow_loss(logits: np.ndarray, mask: np.ndarray) -> float:
    """Pixel by pixel: mean of -log p of the true class, plus 1 - mean over classes of (2 sum(p y) + 1) / (.. + 1)."""
    batch, classes, height, width = logits.shape
    entropy, overlap, total = [], np.zeros(classes), np.zeros(classes)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                if mask[b, i, j] == 255:
                    continue
                e = np.exp(logits[b, :, i, j] - logits[b, :, i, j].max())
                p = e / e.sum()
                entropy.append(-np.log(p[mask[b, i, j]]))
                overlap[mask[b, i, j]] += p[mask[b, i, j]]
                total += p
                total[mask[b, i, j]] += 1
    return float(np.mean(entropy) + 1 - np.mean((2 * overlap + 1) / (total + 1)))


def random_case(seed: int, classes: int = 3, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (2, classes, 7, 5))).float()
    mask = rng.integers(0, classes, (2, 7, 5))
    mask[rng.random(mask.shape) < ignored] = 255
    return logits, torch.from_numpy(mask)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.95])
def test_the_loss_is_cross_entropy_plus_soft_dice(classes: int, ignored: float) -> None:
    for seed in range(3):
        logits, mask = random_case(seed, classes, ignored)
        assert float(segmentation_loss(logits, mask)) == pytest.approx(slow_loss(logits.numpy(), mask.numpy()), 1e-5)


def test_pixels_of_255_change_neither_the_loss_nor_any_weight() -> None:
    logits, mask = random_case(0)
    changed = torch.where((mask == 255).unsqueeze(1), torch.randn(logits.shape) * 50, logits)
    assert not torch.equal(changed, logits)
    torch.testing.assert_close(segmentation_loss(changed, mask), segmentation_loss(logits, mask))
    logits.requires_grad_()
    segmentation_loss(logits, mask).backward()
    ignored = (mask == 255).unsqueeze(1).expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).any()


def test_a_batch_of_nothing_but_255_is_worth_0_and_moves_nothing() -> None:
    logits, mask = random_case(0)
    logits.requires_grad_()
    loss = segmentation_loss(logits, torch.full_like(mask, 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


def test_a_right_and_sure_answer_costs_next_to_nothing() -> None:
    _, mask = random_case(0)
    sure = torch.nn.functional.one_hot(mask.where(mask != 255, 0), 3).movedim(-1, 1) * 40.0
    assert float(segmentation_loss(sure, mask)) == pytest.approx(0, abs=1e-5)
    assert float(segmentation_loss(-sure, mask)) > 5


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_the_robust_entropy_is_its_formula_pixel_by_pixel(q: float) -> None:
    logits, mask = random_case(3)
    p = logits.softmax(1)
    values = [
        (1 - float(p[b, mask[b, i, j], i, j]) ** q) / q for b, i, j in np.ndindex(*mask.shape) if mask[b, i, j] != 255
    ]
    assert float(noise_robust_entropy(logits, mask, q)) == pytest.approx(np.mean(values), 1e-5)
    both = noise_robust_entropy(logits, mask, q) + soft_dice_loss(logits, mask)
    torch.testing.assert_close(segmentation_loss(logits, mask, q), both)


def test_a_small_q_is_cross_entropy_and_one_pulls_wrong_masks_no_more_than_right_ones() -> None:
    logits, mask = random_case(4)
    assert float(noise_robust_entropy(logits, mask, 1e-4)) == pytest.approx(
        float(noise_robust_entropy(logits, mask, 0)), 1e-3
    )
    sure = torch.tensor([8.0, -8.0]).view(1, 2, 1, 1).requires_grad_()
    pulls = {}
    for q in (0.0, 0.7, 1.0):
        (pulls[q],) = torch.autograd.grad(noise_robust_entropy(sure, torch.ones(1, 1, 1, dtype=torch.long), q), sure)
    assert pulls[0.0].abs().max() > 0.99, "cross-entropy believes a wrong mask"
    assert pulls[1.0].abs().max() < pulls[0.7].abs().max() < 0.01


def slow_taught(mask: Any, p: Any, named: Any, held: Any, confident: Any) -> Any:
    out = mask.copy()
    for b, i, j in np.ndindex(*mask.shape):
        value = int(p[b, :, i, j].argmax())
        if p[b, value, i, j] >= confident and named[b, value] and held[b, i, j]:
            if mask[b, i, j] == 255:
                out[b, i, j] = value
            elif mask[b, i, j] != value:
                out[b, i, j] = 255
    return out


@given(st.integers(0, 10_000), st.floats(0.5, 1.0))
def test_a_teacher_fills_what_is_open_and_doubts_what_it_contradicts(seed: int, confident: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 2, 255], (2, 4, 3))
    p = rng.dirichlet([0.3] * 3, (2, 4, 3)).transpose(0, 3, 1, 2).astype(np.float32)
    named, held = rng.random((2, 3)) < 0.7, rng.random((2, 4, 3)) < 0.8
    got = corrected_by_teacher(*(torch.from_numpy(a) for a in (mask, p, named, held)), confident).numpy()
    np.testing.assert_array_equal(got, slow_taught(mask, p, named, held, np.float32(confident)))
    assert (got[~held] == mask[~held]).all()
    for b in range(2):
        for v in range(3):
            if not named[b, v]:
                assert ((got[b] == v) <= (mask[b] == v)).all(), "what the label excludes was corrected_by_teacher"
