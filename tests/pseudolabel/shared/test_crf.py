"""The dense CRF: fast filters and mean field against sums over all pairs, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from support.examples import examples
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.shared.crf import (
    WINDOWED_PX,
    Kernels,
    PermutohedralLattice,
    WindowedKernel,
    _features,
    _simplices,
    gaussian,
    mean_field,
    normalised,
    unary_of_labels,
    unary_of_map,
)

PUBLISHED = {  # settings of methods: kernels, updates
    "HistoSegNet, morphology": (Kernels(1, 20, 10, 40, 50), 5),
    "HistoSegNet, function": (Kernels(3, 40, 10, 4, 25), 5),
    "HistoSegNet, fallback": (Kernels(3, 30, 10, 20, 50), 5),
    "HistoSegNet, VGG16": (Kernels(1.5, 3, 40, 13, 10), 10),
    "HistoSegNet, M7": (Kernels(0.0625, 3, 1.667, 13, 10), 10),
    "IRNet": (Kernels(3, 3, 50, 5, 10), 10),
    "DeepLab": (Kernels(1, 3, 67, 3, 4), 10),
    "SEC": (Kernels(3, 3, 80, 13, 10), 10),
}
NARROW = Kernels(1, 3, 2, 20, 10)
WIDE = Kernels(1, 3, 8, 20, 10)
BOTH = pytest.mark.parametrize("kernels", [NARROW, WIDE], ids=["windows", "lattice"])


def tissue(h: int, w: int, seed: int = 0) -> Tensor:
    """Blobs of two stains under grain: uint8 [3, h, w]."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.standard_normal((h, w)), 3) > 0
    grain = ndimage.gaussian_filter(rng.standard_normal((h, w)), 0.7) * 2
    colours = np.where(blobs, 150, 205) + np.array([0, -50, -15])[:, None, None] + 14 * grain
    return torch.from_numpy(np.clip(np.rint(colours), 0, 255).astype(np.uint8))


def noisy_map(c: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Probabilities that vary smoothly, with noise: float32 [c, h, w]."""
    rng = np.random.default_rng(seed)
    logits = 8 * ndimage.gaussian_filter(rng.standard_normal((c, h, w)), (0, 3, 3)) + 0.5 * rng.standard_normal(
        (c, h, w)
    )
    return torch.softmax(torch.from_numpy(logits), 0).float()


def kernel(h: int, w: int, width_px: float, colours: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """k(i, j) of all pairs, as it is written: float64 [h w, h w]."""
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    squared = ((x - x[:, None]) / width_px) ** 2 + ((y - y[:, None]) / width_px) ** 2
    for colour in () if colours is None else colours.reshape(len(colours), -1):
        squared = squared + (colour - colour[:, None]) ** 2
    return np.exp(-squared / 2)


def dense_mean_field(
    unary: Tensor, rgb: Tensor, kernels: Kernels, iterations: int, known: Tensor | None = None
) -> NDArray[np.float64]:
    """Mean field with matrices of all pairs, in float64; cells that are not known are taken out of them."""
    h, w = unary.shape[1:]
    there = np.ones(h * w) if known is None else known.numpy().ravel().astype(float)
    messages = []
    for width, colours, weight in (
        (kernels.gauss_px, None, kernels.gauss_weight),
        (kernels.bilateral_px, rgb.double().numpy() / kernels.bilateral_rgb, kernels.bilateral_weight),
    ):
        k = kernel(h, w, width, colours) * there * there[:, None]
        n = np.maximum(k.sum(1), 1e-300)
        messages.append(weight * k / np.sqrt(n) / np.sqrt(n)[:, None])
    u = unary.double().numpy().reshape(len(unary), -1).T
    q = np.exp(-u) / np.exp(-u).sum(1, keepdims=True)
    for _ in range(iterations):
        energy = -u + sum(m @ q for m in messages)
        q = np.exp(energy - energy.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    return q.T.reshape(unary.shape)


@pytest.mark.parametrize("name", PUBLISHED)
def test_mean_field_agrees_with_the_sum_over_all_pairs_in_every_published_setting(name: str):
    """On a map that is larger than most kernels: in a small one a wide kernel is nearly constant."""
    kernels, iterations = PUBLISHED[name]
    p, rgb = noisy_map(3, 48, 56), tissue(48, 56)
    unary = unary_of_labels(p.argmax(0), 3, 0.7) if name == "IRNet" else unary_of_map(p)
    expected = dense_mean_field(unary, rgb, kernels, iterations)
    q = mean_field(unary, rgb, kernels, iterations).numpy()
    exact = kernels.bilateral_px <= WINDOWED_PX
    assert np.abs(q - expected).mean() < (5e-4 if exact else 0.02)
    assert (q.argmax(0) != expected.argmax(0)).mean() <= (0.001 if exact else 0.025)
    assert (expected.argmax(0) != p.numpy().argmax(0)).mean() > (0.01 if exact else 0.05), "the kernels do something"


def dense_filter(rgb: Tensor, width_px: float, colour: float, p: Tensor) -> Tensor:
    """K~ p of the bilateral kernel by a matrix of all pairs: float64."""
    k = kernel(*p.shape[1:], width_px, rgb.double().numpy() / colour)
    root = 1 / np.sqrt(k.sum(1))
    return torch.from_numpy(root * (root * p.double().numpy().reshape(len(p), -1) @ k)).view(p.shape)


@pytest.mark.parametrize(
    ("summed", "width_px", "colour", "mean", "most"),
    [
        (WindowedKernel, 1.667, 13, 0.0002, 0.003),
        (WindowedKernel, 5, 4, 0.0002, 0.003),
        (WindowedKernel, 5, 20, 0.0002, 0.003),
        (PermutohedralLattice, 10, 4, 0.005, 0.05),
        (PermutohedralLattice, 10, 20, 0.005, 0.04),
        (PermutohedralLattice, 10, 40, 0.005, 0.03),
        (PermutohedralLattice, 50, 5, 0.005, 0.04),
        (PermutohedralLattice, 67, 3, 0.005, 0.04),
        (PermutohedralLattice, 80, 13, 0.005, 0.04),
    ],
)
def test_the_error_of_a_filter_is_what_the_module_states(
    summed: type[WindowedKernel] | type[PermutohedralLattice], width_px: float, colour: float, mean: float, most: float
):
    rgb, p = tissue(48, 56), noisy_map(3, 48, 56)
    k = summed(rgb.float() / colour, width_px)
    error = (normalised(k, torch.ones(48, 56, dtype=torch.bool))(p) - dense_filter(rgb, width_px, colour, p)).abs()
    assert error.mean() < mean
    assert error.max() < most


def test_the_spatial_kernel_is_exact():
    q = noisy_map(2, 7, 9)
    expected = kernel(7, 9, 2.5) @ q.double().numpy().reshape(2, -1).T
    np.testing.assert_allclose(gaussian(q, 2.5)(q).reshape(2, -1).T, expected, rtol=1e-5)


def test_windows_are_the_sum_over_all_pairs_within_reach():
    rgb, q = tissue(9, 8).float() / 20, noisy_map(2, 9, 8)
    k = kernel(9, 8, 1.5, rgb.double().numpy())
    y, x = np.mgrid[:9, :8].reshape(2, -1)
    k[np.hypot(y - y[:, None], x - x[:, None]) > 3.5 * 1.5] = 0
    np.testing.assert_allclose(
        WindowedKernel(rgb, 1.5)(q).reshape(2, -1).T, k @ q.double().numpy().reshape(2, -1).T, rtol=1e-4
    )


@given(st.integers(0, 1000), st.floats(0.3, 30))
@examples(15)
def test_a_point_is_the_weighted_mean_of_the_vertices_of_its_simplex(seed: int, spread: float):
    d = 5
    features = torch.randn(20, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread
    vertices, weights = _simplices(features)
    last = -vertices.sum(-1, keepdim=True)
    full = torch.cat([vertices, last], -1)
    assert (full.remainder(d + 1) == full[..., :1].remainder(d + 1)).all()  # all coordinates of one remainder
    assert weights.min() > -1e-6
    torch.testing.assert_close(weights.sum(1), torch.ones(20))
    point = (weights[..., None].double() * full).sum(1)
    apart = torch.cdist(point, point), torch.cdist(features, features)
    torch.testing.assert_close(apart[0], apart[1] * (d + 1) * math.sqrt(2 / 3), rtol=1e-4, atol=1e-3)


def test_the_lattice_gives_all_cells_of_one_colour_a_gaussian():
    q = torch.zeros(1, 41, 41)
    q[0, 20, 20] = 1
    out = PermutohedralLattice(torch.zeros(3, 41, 41), 6.5)(q)[0]
    out = out / out.sum()
    at = torch.arange(41) - 20.0
    spread = ((out.sum(0) * at**2).sum().sqrt(), (out.sum(1) * at**2).sum().sqrt())
    assert all(float(s) == pytest.approx(6.5, rel=0.08) for s in spread)


@BOTH
def test_without_weights_the_answer_is_the_softmax(kernels: Kernels):
    unary = unary_of_map(noisy_map(3, 8, 9))
    off = Kernels(kernels.gauss_px, 0, kernels.bilateral_px, kernels.bilateral_rgb, 0)
    assert torch.equal(mean_field(unary, tissue(8, 9), off, 5), torch.softmax(-unary, 0))
    assert torch.equal(mean_field(unary, tissue(8, 9), kernels, 0), torch.softmax(-unary, 0))


@BOTH
def test_a_picture_and_a_unary_of_one_value_keep_their_label(kernels: Kernels):
    unary = torch.tensor([1.0, 0.9, 1.2])[:, None, None].expand(3, 10, 12)
    q = mean_field(unary, torch.full((3, 10, 12), 180, dtype=torch.uint8), kernels, 5)
    assert (q.argmax(0) == 1).all()


@BOTH
def test_a_single_label_has_probability_one(kernels: Kernels):
    for unary in (unary_of_map(noisy_map(1, 6, 7) / 2), unary_of_labels(torch.zeros(6, 7, dtype=torch.int64), 1, 0.7)):
        assert torch.equal(mean_field(unary, tissue(6, 7), kernels, 3), torch.ones(1, 6, 7))


@BOTH
@given(st.permutations(range(4)), st.integers(0, 20))
@examples(8)
def test_permuting_the_labels_permutes_the_answer(kernels: Kernels, order: list[int], seed: int):
    unary, rgb = unary_of_map(noisy_map(4, 9, 11, seed)), tissue(9, 11, seed)
    torch.testing.assert_close(
        mean_field(unary[order], rgb, kernels, 4), mean_field(unary, rgb, kernels, 4)[order], atol=1e-4, rtol=1e-3
    )


@BOTH
def test_probabilities_sum_to_one_and_come_out_the_same_again(kernels: Kernels):
    unary, rgb = unary_of_map(noisy_map(3, 20, 24)), tissue(20, 24)
    q = mean_field(unary, rgb, kernels, 5)
    torch.testing.assert_close(q.sum(0), torch.ones(20, 24))
    assert torch.equal(q, mean_field(unary, rgb, kernels, 5))


@BOTH
def test_what_is_not_known_changes_nothing_and_is_not_changed(kernels: Kernels):
    unary, rgb = unary_of_map(noisy_map(3, 14, 18)), tissue(14, 18)
    known = torch.ones(14, 18, dtype=torch.bool)
    known[3:9, 5:12] = False
    q = mean_field(unary, rgb, kernels, 5, known)
    for seed, fill in enumerate((0.0, 20.0, math.nan)):
        other, colours = unary.clone(), rgb.clone()
        other[0, ~known], colours[:, ~known] = fill, tissue(14, 18, seed + 1)[:, ~known]
        again = mean_field(other, colours, kernels, 5, known)
        assert torch.equal(again[:, known], q[:, known])
        assert torch.equal(again[:, ~known].nan_to_num(), torch.softmax(-other, 0)[:, ~known].nan_to_num())
    everywhere = mean_field(unary, rgb, kernels, 5)
    assert not torch.allclose(everywhere[:, known], q[:, known], atol=1e-3)


def test_unknown_cells_are_taken_out_of_the_kernels():
    unary, rgb = unary_of_map(noisy_map(3, 8, 10)), tissue(8, 10)
    known = torch.from_numpy(np.random.default_rng(0).random((8, 10)) > 0.3)
    expected = dense_mean_field(unary, rgb, NARROW, 5, known)
    np.testing.assert_allclose(mean_field(unary, rgb, NARROW, 5, known), expected, atol=0.01)


def test_unaries_are_logarithms():
    p = torch.tensor([[[0.5, 0.0]], [[2.0, 1.0]]])
    np.testing.assert_allclose(unary_of_map(p), [[[math.log(2), 5 * math.log(10)]], [[0, 0]]], rtol=1e-5)
    labels = torch.tensor([[1, 0, 255]], dtype=torch.uint8)
    sure, other, even = -math.log(0.7), -math.log(0.15), math.log(3)
    expected = [[[other, sure, even]], [[sure, other, even]], [[other, other, even]]]
    np.testing.assert_allclose(unary_of_labels(labels, 3, 0.7), expected, rtol=1e-5)


def test_bad_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"crf bilateral_rgb: 0 is not a width above 0"):
        Kernels(1, 1, 1, 0, 1)
    with pytest.raises(ConfigError, match=r"crf gauss_weight: -1 is negative; 0 leaves the kernel out"):
        Kernels(1, -1, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"crf confidence: 1\.0 is not inside 0\.\.1"):
        unary_of_labels(torch.zeros(2, 2, dtype=torch.int64), 2, 1.0)
    with pytest.raises(ValueError, match=r"labels reach from 0 to 3, expected 0\.\.2 or 255"):
        unary_of_labels(torch.tensor([[0, 3]]), 3, 0.7)
    with pytest.raises(ValueError, match=r"colours of shape \(3, 4, 4\) for unaries of shape \(2, 4, 5\)"):
        mean_field(torch.zeros(2, 4, 5), tissue(4, 4), NARROW, 1)
    with pytest.raises(ConfigError, match="crf iterations: -1 is negative"):
        mean_field(torch.zeros(2, 4, 4), tissue(4, 4), NARROW, -1)
    with pytest.raises(ConfigError, match=r"crf bilateral_rgb.*increase"):
        mean_field(torch.zeros(2, 40, 40), tissue(40, 40), Kernels(1, 1, 8, 1e-3, 1), 1)


def test_features_are_position_and_colour():
    f = _features(tissue(4, 6).float(), 2.0)
    assert f[9].tolist() == [1.5, 0.5, *tissue(4, 6)[:, 1, 3].tolist()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@BOTH
def test_a_gpu_gives_the_answers_of_the_cpu_every_time(kernels: Kernels):
    unary, rgb = unary_of_map(noisy_map(3, 40, 50)), tissue(40, 50)
    known = torch.ones(40, 50, dtype=torch.bool)
    known[:8, :9] = False
    on = torch.device("cuda")
    q = mean_field(unary.to(on), rgb.to(on), kernels, 5, known.to(on))
    torch.testing.assert_close(q.cpu(), mean_field(unary, rgb, kernels, 5, known), atol=2e-3, rtol=1e-2)
    assert torch.equal(q, mean_field(unary.to(on), rgb.to(on), kernels, 5, known.to(on)))
