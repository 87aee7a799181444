"""Refinement by superpixels: one value within each, in um."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.parts.superpixels import pool_mean, superpixels
from wsipipe.pseudolabel.refine.slic import Params, refine


def everywhere(h: int, w: int) -> Tensor:
    return torch.ones(h, w, dtype=torch.bool)


def halves(h: int, w: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pink tissue and, right of a slanting line, purple, with grain: uint8 [3, h, w]; where it is purple, [h, w]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    purple = x + y // 4 > w // 2
    rgb = np.where(purple, 160, 215) + np.array([0, -55, -20])[:, None, None] + 8 * rng.standard_normal((h, w))
    return torch.from_numpy(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)), torch.from_numpy(purple)


def noisy_evidence(purple: Tensor, seed: int = 0) -> Tensor:
    """Evidence for none, purple and an absent class, coarse and noisy: float32 [3, h, w]."""
    h, w = purple.shape
    rng = torch.Generator().manual_seed(seed)
    coarse = F.avg_pool2d(purple[None].float(), 6, ceil_mode=True)
    coarse = (0.2 + 0.6 * coarse + 0.2 * torch.randn(coarse.shape, generator=rng)).clamp(0.01, 0.99)
    p = F.interpolate(coarse[None], scale_factor=6, mode="bilinear")[0, 0, :h, :w]
    return torch.stack([1 - p, p, torch.zeros(h, w)])


def wrong(evidence: Tensor, purple: Tensor) -> float:
    return float(((evidence.argmax(0) == 1) != purple).float().mean())


def test_evidence_comes_closer_to_the_borders_of_the_tissue():
    rgb, purple = halves(60, 72)
    evidence = noisy_evidence(purple)
    out = refine(evidence, rgb, everywhere(60, 72), 4.0, Params())
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert wrong(out, purple) < 0.9 * wrong(evidence, purple)


def test_a_class_without_evidence_stays_without():
    rgb, purple = halves(30, 36)
    out = refine(noisy_evidence(purple), rgb, everywhere(30, 36), 4.0, Params())
    assert not out[2].any()
    assert out[:2].any()


def test_what_is_not_known_comes_back_as_it_was_and_has_no_influence():
    rgb, purple = halves(30, 36)
    known = everywhere(30, 36)
    known[5:20, 10:25] = False
    evidence = noisy_evidence(purple)
    out = refine(evidence, rgb, known, 4.0, Params())
    assert torch.equal(out[:, ~known], evidence[:, ~known])
    for fill in (1.0, float("nan")):
        other, colours = evidence.clone(), rgb.clone()
        other[:, ~known], colours[:, ~known] = fill, 0
        again = refine(other, colours, known, 4.0, Params())
        torch.testing.assert_close(again[:, known], out[:, known], atol=1e-6, rtol=0)
        assert torch.equal(again[:, ~known].nan_to_num(), other[:, ~known].nan_to_num())


def test_where_nothing_is_known_nothing_changes():
    rgb, purple = halves(12, 14)
    evidence = noisy_evidence(purple)
    assert torch.equal(refine(evidence, rgb, ~everywhere(12, 14), 4.0, Params()), evidence)


def test_lengths_are_in_um():
    rgb, purple = halves(30, 36)
    evidence, known = noisy_evidence(purple), everywhere(30, 36)
    one = refine(evidence, rgb, known, 4.0, Params(side_um=20))
    assert torch.equal(one, refine(evidence, rgb, known, 8.0, Params(side_um=40)))
    assert not torch.equal(one, refine(evidence, rgb, known, 8.0, Params(side_um=20)))


def test_what_was_given_is_not_written_to():
    rgb, purple = halves(20, 24)
    evidence = noisy_evidence(purple)
    before = evidence.clone(), rgb.clone()
    refine(evidence, rgb, everywhere(20, 24), 4.0, Params())
    assert torch.equal(evidence, before[0])
    assert torch.equal(rgb, before[1])


def test_it_is_the_mean_of_every_superpixel():
    rgb, purple = halves(30, 36)
    evidence, known = noisy_evidence(purple), everywhere(30, 36)
    known[3:8, :9] = False
    expected = pool_mean(evidence, superpixels(rgb, known, 6.0, 12.0))
    assert torch.equal(refine(evidence, rgb, known, 4.0, Params(side_um=24.0, compactness=12.0)), expected)
    assert not torch.equal(expected, pool_mean(evidence, superpixels(rgb, known, 6.0, 100.0)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("side_um", 0.0, r"slic.side_um: 0\.0 is not above 0"),
        ("compactness", 0.0, r"slic.compactness: 0\.0 is not above 0"),
    ],
)
def test_bad_parameters_are_told(name: str, value: float, message: str):
    with pytest.raises(ConfigError, match=message):
        Params(**{name: value})
