"""Mean-field inference in the fully connected CRF (Krähenbühl and Koltun, NIPS 2011), in PyTorch, on any device.

With unaries U_i(l) and, for each of the two kernels, k(i, j) = exp(-|f_i - f_j|^2 / 2) over the features

    Gaussian   f = (x, y) / gauss_px
    bilateral  f = ((x, y) / bilateral_px, (R, G, B) / bilateral_rgb)

normalised symmetrically, K~ = D^(-1/2) K D^(-1/2) with D_ii = sum_j k(i, j), and a Potts model of weight w_m, it is

    Q^0_i(l)     = softmax_l(-U_i(l))
    Q^(t+1)_i(l) = softmax_l(-U_i(l) + sum_m w_m (K~_m Q^t)_i(l)).

Updates are parallel and start from U each time. Deviation: the sum over j includes j = i, in K~ and in D. Eq. 4 of the
paper leaves it out, but the authors' program, and with it all published settings, includes it.

How K is applied, with two errors against the dense sum over all pairs of cells: the mean |error| of K~Q for a map of
probabilities Q, and the fraction of labels that differ. Each is the highest over the settings published with
HistoSegNet, IRNet, DeepLab and SEC (for windowed sums also widths of 5 and 6), as a mean over 20 crops of H&E (GlaS,
48 x 56 cells of 0.6 to 5 um). The tests assert the values in brackets on generated tissue of that size.

- Gaussian: separable, K = K_y x K_x; two products with small dense matrices, exact.
- bilateral, up to `WINDOWED_PX`: `WindowedKernel`, the sum over all pairs up to 3.5 widths apart: 0.0002 and 0.1 %
  [0.0002, 0.1 %].
- bilateral, wider: `PermutohedralLattice`, whose cost does not depend on the width: 0.007 and 1.1 % [0.005, 2.5 %]. In
  single crops up to 12 % of the labels differed, where a wide kernel leaves two labels almost equally likely. The
  lattice as published has up to four times the error of K~Q and 4 % different labels.

All sums run in a fixed order, so the same input gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.errors import check
from wsipipe.labels import IGNORE

WINDOWED_PX = 6.0
"""Largest width of a bilateral kernel that is summed pair by pair: 690 pairs, or 3 kB, per cell."""

REACH = 3.5
"""Distance, in widths, beyond which `WindowedKernel` is 0; the true kernel is below 0.0022 there."""

NARROWED = 1.05
"""Features are stretched by this factor for the lattice, whose kernel is too wide. Found by comparison with the dense
sum on tissue, where it halves the number of labels that differ."""

LEAST_P = 1e-5
"""Probabilities are raised to at least this before the logarithm, as published."""

Filter = Callable[[Tensor], Tensor]
"""Values float32 [C, h, w] -> sums weighted by a kernel, float32 [C, h, w]."""


@dataclass(frozen=True)
class Kernels:
    """Widths (standard deviations) and Potts weights of the two kernels.

    gauss_px, bilateral_px: in cells of the map. bilateral_rgb: colour distance in levels of 0..255. A kernel of weight
    0 is left out.
    """

    gauss_px: float
    gauss_weight: float
    bilateral_px: float
    bilateral_rgb: float
    bilateral_weight: float

    def __post_init__(self) -> None:
        for name in ("gauss_px", "bilateral_px", "bilateral_rgb"):
            check(getattr(self, name) > 0, f"crf {name}: {getattr(self, name)} is not a width above 0")
        for name in ("gauss_weight", "bilateral_weight"):
            check(getattr(self, name) >= 0, f"crf {name}: {getattr(self, name)} is negative; 0 leaves the kernel out")


def unary_of_map(p: Tensor) -> Tensor:
    """U = -log clip(p, 1e-5, 1): maps float [C, h, w], which need not sum to 1 -> float [C, h, w]."""
    return -torch.log(p.clamp(LEAST_P, 1))


def unary_of_labels(labels: Tensor, count: int, confidence: float) -> Tensor:
    """U = -log g for the given label, -log((1 - g) / (count - 1)) for all others: int [h, w] -> float32 [count, h, w].

    g is `confidence`, in 0..1. Cells with 255 are undecided: the same U for all labels. With a single label any U gives
    it probability 1.
    """
    check(0 < confidence < 1, f"crf confidence: {confidence} is not inside 0..1")
    undecided = labels == IGNORE
    if bool(((labels < 0) | (labels >= count) & ~undecided).any()):
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, expected 0..{count - 1} or 255"
        )
    given = labels == torch.arange(count, device=labels.device)[:, None, None]
    p = torch.where(given, confidence, (1 - confidence) / max(count - 1, 1))
    return -torch.log(torch.where(undecided, 1 / count, p)).float()


def mean_field(unary: Tensor, rgb: Tensor, kernels: Kernels, iterations: int, known: Tensor | None = None) -> Tensor:
    """Q after `iterations` updates, float32 [C, h, w], the probabilities of C labels in each cell.

    unary: float [C, h, w], lower is likelier. rgb: uint8 or float [3, h, w], 0..255. known: bool [h, w], None for all;
    other cells neither send nor receive messages, and their Q is softmax(-U).
    """
    check(iterations >= 0, f"crf iterations: {iterations} is negative")
    if rgb.shape != (3, *unary.shape[1:]):
        raise ValueError(f"colours of shape {tuple(rgb.shape)} for unaries of shape {tuple(unary.shape)}")
    unary = unary.float()
    takes_part = torch.ones_like(unary[0], dtype=torch.bool) if known is None else known
    messages = _messages(torch.where(takes_part, rgb.to(unary), 0), kernels, takes_part)
    q = torch.softmax(-unary, 0)
    for _ in range(iterations):
        q = torch.softmax(sum((w * k(q) for w, k in messages), -unary), 0)
    return q


def _messages(rgb: Tensor, kernels: Kernels, known: Tensor) -> list[tuple[float, Filter]]:
    """Weight and normalised filter of each kernel with a weight: rgb float [3, h, w], known bool [h, w]."""
    messages: list[tuple[float, Filter]] = []
    if kernels.gauss_weight > 0:
        messages.append((kernels.gauss_weight, normalised(gaussian(rgb, kernels.gauss_px), known)))
    if kernels.bilateral_weight > 0:
        kernel = WindowedKernel if kernels.bilateral_px <= WINDOWED_PX else PermutohedralLattice
        k = kernel(rgb / kernels.bilateral_rgb, kernels.bilateral_px)
        messages.append((kernels.bilateral_weight, normalised(k, known)))
    return messages


def normalised(k: Filter, known: Tensor) -> Filter:
    """K~ = D^(-1/2) K D^(-1/2) over the known cells, bool [h, w]; 0 in all others."""
    total = k(known.float()[None])[0]
    root = torch.where(known, total, torch.inf).rsqrt()
    return lambda q: root * k(root * torch.where(known, q, 0))


def gaussian(like: Tensor, width_px: float) -> Filter:
    """The spatial kernel, not normalised, for maps with the size and device of `like`, [.., h, w]."""

    def matrix(n: int) -> Tensor:
        at = torch.arange(n, device=like.device, dtype=torch.float32) / width_px
        return torch.exp(-0.5 * (at[:, None] - at) ** 2)

    rows, cols = (matrix(n) for n in like.shape[-2:])
    return lambda q: rows @ q @ cols


class WindowedKernel:
    """The sum over all pairs of cells up to `REACH` widths apart, one displacement at a time.

    The kernel is exp(-|p_i - p_j|^2 / (2 width_px^2) - |c_i - c_j|^2 / 2), not normalised. One displacement serves both
    cells of a pair. Weights are precomputed: 4 bytes per cell and displacement, of 19 width_px^2 displacements.
    """

    def __init__(self, colours: Tensor, width_px: float) -> None:
        """colours: float32 [3, h, w] in colour widths."""
        self.pairs = []
        h, w = colours.shape[1:]
        for dy, dx in _displacements(REACH * width_px):
            if dy >= h or abs(dx) >= w:
                continue
            here = (..., slice(0, h - dy), slice(max(0, -dx), w - max(0, dx)))
            there = (..., slice(dy, h), slice(max(0, dx), w - max(0, -dx)))
            gap = colours[here] - colours[there]
            squared = gap.mul_(gap).sum(0).add_((dy * dy + dx * dx) / width_px**2)
            self.pairs.append((here, there, squared.mul_(-0.5).exp_()))

    def __call__(self, q: Tensor) -> Tensor:
        """Sums weighted by the kernel, the cell itself with weight 1: float32 [C, h, w] -> float32 [C, h, w]."""
        total = q.clone()
        for here, there, weight in self.pairs:
            total[here].addcmul_(weight, q[there])
            total[there].addcmul_(weight, q[here])
        return total


def _displacements(reach_px: float) -> Iterator[tuple[int, int]]:
    """(dy, dx) of half a disc: one of each pair of opposites, without (0, 0)."""
    r = math.floor(reach_px)
    for dy in range(r + 1):
        for dx in range(-r if dy else 1, r + 1):
            if dy * dy + dx * dx <= reach_px**2:
                yield dy, dx


class PermutohedralLattice:
    """Splat, blur and slice on the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010), d = 5 features.

    Features are embedded into the hyperplane sum = 0 of R^(d+1). Each cell gives its value to the d + 1 vertices of its
    simplex with barycentric weights, the vertices are blurred by (1/2, 1, 1/2) along each of the d + 1 axes, and cells
    read their value with the same weights.

    Deviations: sorting and binary search find vertices instead of a hash table, which works on any device and sums in a
    fixed order; one more ring of vertices is added before the blur, so that mass can pass where no cell lies. The
    result is K up to a constant factor, which the normalisation removes.
    """

    def __init__(self, colours: Tensor, width_px: float) -> None:
        """colours: float32 [3, h, w] in colour widths."""
        keys, self.weights = _simplices(NARROWED * _features(colours, width_px))
        d = keys.shape[-1]
        low = keys.amin((0, 1)) - 2 * d - 2
        span = keys.amax((0, 1)) + 2 * d + 2 - low + 1
        place = torch.cat([span.new_ones(1), span[:-1]]).cumprod(0)
        check(
            math.prod(span.tolist()) < 2**63,
            f"crf bilateral_rgb, bilateral_px: {span.tolist()} steps of the lattice are too many; increase them",
        )
        wanted = ((keys - low) * place).sum(-1)
        steps = (((d + 1) * torch.eye(d + 1, d, device=keys.device).long() - 1) * place).sum(1).tolist()
        touched = torch.unique(wanted)
        codes = torch.unique(torch.cat([touched, *(touched + s for s in steps), *(touched - s for s in steps)]))
        self.vertex = torch.searchsorted(codes, wanted)
        self.neighbours = [torch.stack([_find(codes, codes - s), _find(codes, codes + s)], 1) for s in steps]
        order = torch.argsort(self.vertex.flatten(), stable=True)
        self.source_cell, self.source_weight = order // (d + 1), self.weights.flatten()[order]
        counts = torch.bincount(self.vertex.flatten(), minlength=len(codes) + 1)
        self.first = counts.cumsum(0) - counts

    def __call__(self, q: Tensor) -> Tensor:
        """Sums weighted by the kernel, up to a constant: float32 [C, h, w] -> float32 [C, h, w]."""
        values = q.flatten(1).T.contiguous()
        at = F.embedding_bag(self.source_cell, values, self.first, mode="sum", per_sample_weights=self.source_weight)
        for pair in self.neighbours:
            at[:-1] += F.embedding_bag(pair, at, mode="sum") / 2
        out = F.embedding_bag(self.vertex, at, mode="sum", per_sample_weights=self.weights)
        return out.T.reshape(q.shape)


def _features(colours: Tensor, width_px: float) -> Tensor:
    """Position and colour of every cell in widths of the kernel: float64 [h w, 5]."""
    h, w = colours.shape[1:]
    y = torch.arange(h, device=colours.device, dtype=torch.float64)[:, None].expand(h, w)
    x = torch.arange(w, device=colours.device, dtype=torch.float64).expand(h, w)
    return torch.stack([x / width_px, y / width_px, *colours.double()]).flatten(1).T


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """The simplex around each point: float64 [N, d] -> vertices int64 [N, d + 1, d] and weights float32 [N, d + 1].

    The last of the d + 1 coordinates of a vertex, minus the sum of the others, is left out.
    """
    d = features.shape[1]
    i = torch.arange(d, device=features.device, dtype=torch.float64)
    # the blur and the two interpolations add up to a variance of 2 (d + 1)^2 / 3 along each axis of the features
    scaled = features * (d + 1) * math.sqrt(2 / 3) / ((i + 1) * (i + 2)).sqrt()
    later = F.pad(scaled.flip(1).cumsum(1).flip(1), (0, 1))
    point = later - F.pad(scaled * (i + 1), (1, 0))
    nearest = (point / (d + 1)).round() * (d + 1)
    off = (nearest.sum(1, keepdim=True) / (d + 1)).round().long()
    rank = torch.argsort(torch.argsort(nearest - point, dim=1, stable=True), dim=1) + off
    wrap = (rank < 0).long() - (rank > d).long()
    nearest, rank = nearest + (d + 1) * wrap, rank + (d + 1) * wrap
    falling = torch.zeros_like(point).scatter_(1, rank, (point - nearest) / (d + 1))
    weights = (falling - falling.roll(-1, 1)).flip(1)
    weights[:, 0] = 1 - falling[:, 0] + falling[:, d]
    k = torch.arange(d + 1, device=features.device)
    vertices = nearest[:, None, :d].long() + k[:, None] - (d + 1) * (rank[:, None, :d] > d - k[:, None])
    return vertices, weights.float()


def _find(codes: Tensor, sought: Tensor) -> Tensor:
    """Index of each of `sought` in the sorted `codes`, len(codes) if missing: int64 [V], [M] -> int64 [M]."""
    at = torch.searchsorted(codes, sought).clamp_max(len(codes) - 1)
    return torch.where(codes[at] == sought, at, len(codes))
