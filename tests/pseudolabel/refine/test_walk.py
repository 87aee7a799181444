"""The walk between walls of the image: the boundary map by its formula, and evidence that stays on its side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.refine.walk import FLAT, Params, gradient, image_boundary, refine

NAN = float("nan")
PINK, PURPLE = (220, 160, 190), (150, 90, 165)


def halves(h: int, w: int, grain: float = 0.0, seed: int = 0) -> Tensor:
    """Pink on the left, purple on the right, with noise: uint8 [3, h, w]."""
    rgb = np.empty((h, w, 3))
    rgb[:, : w // 2], rgb[:, w // 2 :] = PINK, PURPLE
    rgb += np.random.default_rng(seed).normal(0, 1, (h, w, 1)) * grain
    return torch.from_numpy(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)).movedim(-1, 0).contiguous()


def everywhere(rgb: Tensor) -> Tensor:
    return torch.ones(rgb.shape[1:], dtype=torch.bool)


def random_evidence(seed: int, c: int, h: int, w: int) -> Tensor:
    return torch.rand(c, h, w, generator=torch.Generator().manual_seed(seed))


def test_the_boundary_equals_its_formula_cell_by_cell():
    rgb = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 5, 6)).astype(np.uint8))
    od = [[[-math.log(max(int(rgb[c, y, x]), 1) / 255) for x in range(6)] for y in range(5)] for c in range(3)]
    g = np.zeros((5, 6))
    for y in range(5):
        for x in range(6):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < 5 and 0 <= u < 6:
                    g[y, x] += sum((od[c][v][u] - od[c][y][x]) ** 2 for c in range(3)) / 2
    g = np.sqrt(g)
    typical = np.sort(g.ravel())[14]
    assert typical > FLAT
    expected = 1 - np.exp(-((g / (2.0 * typical)) ** 2) / 2)
    np.testing.assert_allclose(image_boundary(rgb, everywhere(rgb), 0, 2.0).numpy(), expected, atol=1e-4)


def test_a_gradient_to_what_is_not_known_counts_nothing():
    values = torch.tensor([[[0.0, 0.0, 9.0]]])
    assert gradient(values, torch.tensor([[True, True, False]])).tolist() == [[0, 0, 0]]
    assert gradient(values, torch.tensor([[True, True, True]]))[0, 1] == pytest.approx(9 / math.sqrt(2))


@pytest.mark.parametrize("grain", [0.0, 4.0])
def test_evidence_stays_on_its_side_of_an_edge(grain: float):
    rgb = halves(24, 24, grain)
    evidence = torch.zeros(3, 24, 24)
    evidence[0] = 0.25
    evidence[1, :, :12] = 1
    evidence[2, :, 12:] = 1
    out = refine(evidence, rgb, everywhere(rgb), 8.0, Params(steps=64, smooth_um=4.0))
    assert float(out[1, :, :10].min()) > 0.7
    assert float(out[1, :, 14:].max()) < 0.3
    assert (out.argmax(0) == evidence.argmax(0)).float().mean() > 0.95
    torch.testing.assert_close(out[0], evidence[0])


def test_faults_of_the_evidence_are_mended_within_a_tissue():
    rgb, truth = halves(32, 32, 3.0), torch.zeros(32, 32, dtype=torch.long)
    truth[:, 16:] = 1
    evidence = torch.nn.functional.one_hot(truth, 2).movedim(-1, 0).float()
    wrong = random_evidence(3, 1, 32, 32)[0] < 0.2
    evidence = torch.where(wrong, 1 - evidence, evidence)
    before = (evidence.argmax(0) == truth).float().mean()
    after = (refine(evidence, rgb, everywhere(rgb), 8.0, Params(smooth_um=4.0)).argmax(0) == truth).float().mean()
    assert before < 0.85
    assert after > 0.97


def test_staining_twice_as_strong_gives_the_same_walls():
    faint = halves(16, 16, 6.0).float()
    strong = (faint / 255) ** 2 * 255
    a, b = (image_boundary(rgb, everywhere(rgb), 1.0, 3.0) for rgb in (faint, strong))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_flat_tissue_has_no_walls():
    rgb = halves(16, 16)[:, :, :8]
    noisy = rgb + torch.randint(0, 2, rgb.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for flat in (rgb, noisy):
        assert float(image_boundary(flat, everywhere(flat), 1.0, 3.0).max()) < 0.1


@given(st.integers(0, 999), st.floats(0.5, 30))
@examples(20)
def test_unknown_cells_come_back_as_they_were_and_have_no_effect(seed: int, cell_um: float):
    rgb, evidence = halves(9, 11, 8.0, seed), random_evidence(seed, 3, 9, 11)
    evidence[2] = 0
    known = random_evidence(seed + 1, 1, 9, 11)[0] < 0.7
    out = refine(evidence, rgb, known, cell_um, Params())
    torch.testing.assert_close(out[:, ~known], evidence[:, ~known], atol=0, rtol=0)
    assert (out[2] == 0).all(), "a class that is absent stays absent"
    for c in range(2):
        assert out[c][known].min() >= evidence[c][known].min() - 1e-5
        assert out[c][known].max() <= evidence[c][known].max() + 1e-5
    other, painted = evidence.clone(), rgb.clone()
    other[:, ~known] = NAN
    painted[:, ~known] = 3
    again = refine(other, painted, known, cell_um, Params())
    torch.testing.assert_close(again[:, known], out[:, known], atol=1e-4, rtol=1e-4)


def test_nothing_known_changes_nothing():
    rgb, evidence = halves(6, 6), random_evidence(0, 2, 6, 6)
    torch.testing.assert_close(refine(evidence, rgb, ~everywhere(rgb), 8.0, Params()), evidence)


def test_the_radius_follows_the_size_of_cells():
    rgb = halves(41, 41)[:, :, :1].expand(3, 41, 41).contiguous()
    impulse = torch.zeros(1, 41, 41)
    impulse[0, 20, 20] = 1

    def reach(cell_um: float) -> int:
        out = refine(impulse, rgb, everywhere(rgb), cell_um, Params(steps=1, radius_um=40.0))
        return int((out[0, 20] > 0).sum()) // 2

    assert [reach(um) for um in (100.0, 8.0, 1.0)] == [1, 4, 9]


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", -1), ("radius_um", 0.0), ("beta", NAN), ("contrast", 0.0), ("smooth_um", -1.0), ("smooth_um", NAN)],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(field: str, value: Any):
    with pytest.raises(ConfigError, match=rf"walk\.{field}: {value}"):
        Params(**{field: value})
