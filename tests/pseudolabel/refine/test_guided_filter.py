"""The guided filter: against its formulas window by window, and that it keeps constants, edges and what is unknown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.examples import examples
from torch import Tensor

from wsipipe.pseudolabel.refine.guided import box_mean, guided_filter

COLOUR_OR_GREY = pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def window(y: int, x: int, r: int, known: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Known cells of the square window around a cell."""
    h, w = known.shape
    rows, cols = range(max(0, y - r), min(h, y + r + 1)), range(max(0, x - r), min(w, x + r + 1))
    return [(v, u) for v in rows for u in cols if known[v, u]]


def slow(p: Tensor, guide: Tensor, r: int, eps: float, known: Tensor) -> NDArray[np.float64]:
    """The filter as the paper writes it: one linear model a window, then for each cell the mean of those around it."""
    values, i, there = p.double().numpy(), guide.double().numpy(), known.numpy()
    models = {}
    for k in np.argwhere(there):
        cells = window(*k, r, there)
        I = np.array([i[:, v, u] for v, u in cells])  # noqa: E741 - the guide's name in the paper
        P = np.array([values[:, v, u] for v, u in cells])
        mu, mean = I.mean(0), P.mean(0)
        S = (I - mu).T @ (I - mu) / len(cells)
        a = np.linalg.inv(S + eps * np.eye(len(i))) @ (I.T @ P / len(cells) - mu[:, None] * mean)
        models[tuple(k)] = a, mean - mu @ a
    out = values.copy()
    for y, x in np.argwhere(there):
        around = [models[k] for k in window(y, x, r, there)]
        out[:, y, x] = i[:, y, x] @ np.mean([a for a, _ in around], 0) + np.mean([b for _, b in around], 0)
    return out


@COLOUR_OR_GREY
@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-3), (3, 0.01), (20, 1e-4)])
def test_it_equals_the_formulas_window_by_window(channels: int, radius: int, eps: float):
    p, guide = random(0, 2, 9, 11), random(1, channels, 9, 11)
    known = random(2, 9, 11) > 0.25
    np.testing.assert_allclose(
        guided_filter(p, guide, radius, eps, known), slow(p, guide, radius, eps, known), atol=1e-5
    )


@COLOUR_OR_GREY
@given(st.floats(0, 1, width=32), st.integers(1, 30), st.integers(0, 100))
@examples(20)
def test_a_constant_stays_whatever_the_guide(channels: int, value: float, radius: int, seed: int):
    p = torch.full((2, 8, 10), value)
    out = guided_filter(p, random(seed, channels, 8, 10), radius, 1e-3, random(seed + 1, 8, 10) > 0.3)
    torch.testing.assert_close(out, p, atol=1e-6, rtol=1e-6)


def test_a_channel_of_zeros_is_exactly_zero():
    p = torch.stack([random(0, 12, 9), torch.zeros(12, 9)])
    assert not guided_filter(p, random(1, 3, 12, 9), 2, 1e-3)[1].any()


def test_an_edge_of_the_guide_is_kept_and_noise_is_not():
    guide = torch.full((3, 20, 30), 0.8)
    guide[:, :, 15:] = 0.4
    step = (guide[:1] < 0.6).float()
    noisy = step + 0.2 * torch.randn(step.shape, generator=torch.Generator().manual_seed(0))
    out = guided_filter(noisy, guide, 4, 1e-3)
    assert (out - step).abs().mean() < 0.3 * (noisy - step).abs().mean()
    jump = (out[0, :, 15] - out[0, :, 14]).mean()
    box = box_mean(torch.ones(20, 30, dtype=torch.bool), 4)(noisy.double())
    assert jump > 0.85
    assert (box[0, :, 15] - box[0, :, 14]).mean() < 0.2


def test_edges_fainter_than_eps_are_smoothed_away():
    guide = torch.full((1, 20, 30), 0.50)
    guide[:, :, 15:] = 0.52
    out = guided_filter((guide > 0.51).float(), guide, 4, 0.01)
    assert out[0, 10, 15] - out[0, 10, 14] < 0.2


def test_what_is_not_known_changes_nothing_and_is_not_changed():
    p, guide, known = random(0, 2, 12, 14), random(1, 3, 12, 14), random(2, 12, 14) > 0.4
    out = guided_filter(p, guide, 3, 1e-3, known)
    assert torch.equal(out[:, ~known], p[:, ~known])
    for fill in (5.0, float("nan")):
        other, colours = p.clone(), guide.clone()
        other[:, ~known], colours[:, ~known] = fill, 0.9
        again = guided_filter(other, colours, 3, 1e-3, known)
        torch.testing.assert_close(again[:, known], out[:, known], atol=1e-6, rtol=0)
        assert torch.equal(again[:, ~known].nan_to_num(), other[:, ~known].nan_to_num())


def test_the_same_input_gives_the_same_result():
    p, guide = random(0, 2, 30, 31), random(1, 3, 30, 31)
    assert torch.equal(guided_filter(p, guide, 5, 1e-3), guided_filter(p, guide, 5, 1e-3))


def test_bad_numbers_are_refused():
    p, guide = random(0, 1, 4, 4), random(1, 3, 4, 4)
    with pytest.raises(ValueError, match="a radius of 0 cells is below 1"):
        guided_filter(p, guide, 0, 1e-3)
    with pytest.raises(ValueError, match=r"eps 0\.0 is not above 0"):
        guided_filter(p, guide, 2, 0.0)
    with pytest.raises(ValueError, match=r"guide of shape \(3, 4, 4\) for maps of shape \(1, 4, 5\)"):
        guided_filter(random(0, 1, 4, 5), guide, 2, 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_answers_of_the_cpu():
    p, guide, known = random(0, 2, 40, 50), random(1, 3, 40, 50), random(2, 40, 50) > 0.2
    on = torch.device("cuda")
    out = guided_filter(p.to(on), guide.to(on), 5, 1e-3, known.to(on)).cpu()
    torch.testing.assert_close(out, guided_filter(p, guide, 5, 1e-3, known), atol=1e-5, rtol=1e-5)
