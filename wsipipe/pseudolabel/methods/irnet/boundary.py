"""The boundary network (Ahn, Cho & Kwak, CVPR 2019): a frozen backbone with a boundary and a displacement branch.

Both branches read maps of several depths of the backbone (taps) and give one map at a stride of 4 input px:

    boundary      each tap -> 1x1 conv to 32 -> group norm (4) -> resized -> ReLU; all together -> 1x1 conv to 1
    displacement  each tap -> 1x1 conv -> group norm -> ReLU; coarse ones together -> 256, resized;
                  with the fine ones -> 256 -> 1x1 conv to 2, minus a stored mean in evaluation mode

Deviations, with their reason: any encoder of timm may be the backbone, so taps are up to five of its feature maps,
spread evenly over its depth, each at its own stride (the paper's last stage has stride 16 instead of 32); maps finer
than a stride of 4 are max-pooled to it, as the stem of a ResNet is. Inputs are padded at the right and bottom with
their last pixels to a multiple of all strides, so that no map loses a cell, and the result is cropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.pseudolabel.shared.feature_maps import feature_strides
from wsipipe.pseudolabel.shared.resize import resize

STRIDE = 4
"""Stride of the result: input px per cell."""

MAX_TAPS = 5
"""Most feature maps of the backbone that are used."""

FINE_WIDTHS, WIDTH = (64, 128), 256
"""Channels of the displacement branch: of the first taps at a stride of up to 4, and of all others."""


class BoundaryNet(nn.Module):
    """Images (normalised) float [B, 3, H, W] -> logits of the boundary and, if asked for, displacements."""

    def __init__(self, encoder: nn.Module, displacement: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone(encoder)
        self.boundary_branch = BoundaryBranch(self.backbone.widths, self.backbone.strides)
        self.displacement_branch = (
            DisplacementBranch(self.backbone.widths, self.backbone.strides) if displacement else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Boundary logits float [B, h, w] and displacements float [B, 2, h, w] (y, x, in cells), h = ceil(H / 4)."""
        height, width = (math.ceil(n / STRIDE) for n in x.shape[-2:])
        taps = self.backbone(x)
        logits = self.boundary_branch(taps)[:, 0, :height, :width]
        if self.displacement_branch is None:
            return logits, None
        return logits, self.displacement_branch(taps)[..., :height, :width]

    def boundary(self, x: Tensor) -> Tensor:
        """B float32 0..1 [B, h, w]: sigmoid of the mean of the logits of an image and of its mirror image."""
        return torch.sigmoid(mirrored(lambda image: self(image)[0].float(), x))


def mirrored(predict: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean of predict(x) and of predict(mirror image of x) mirrored back, along the last axis.

    `predict` gives a map with cells of `STRIDE` px; images are padded to whole cells on the right, so that the cells of
    both maps coincide.
    """
    spare = -x.shape[-1] % STRIDE
    whole = F.pad(x, (0, spare, 0, 0), mode="replicate") if spare else x
    mean: Tensor = (predict(whole) + predict(whole.flip(-1)).flip(-1)) / 2
    return mean


class Backbone(nn.Module):
    """A frozen encoder of timm: no gradients, and fixed normalisation statistics."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        strides = feature_strides(encoder)
        count = min(MAX_TAPS, len(strides))
        self.levels = [round((i + 1) * len(strides) / count) - 1 for i in range(count)]
        self.strides = [strides[i] for i in self.levels]
        self.multiple = math.lcm(2 * STRIDE, *self.strides)
        self.encoder = encoder.eval().requires_grad_(False)
        with torch.inference_mode():
            side = self.multiple * math.ceil(64 / self.multiple)
            self.widths = [tap.shape[1] for tap in self(torch.zeros(1, 3, side, side))]

    def train(self, mode: bool = True) -> Backbone:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """The taps of images float [B, 3, H, W], finest first: float [B, D, h, w] each, with the same h * stride."""
        below, right = (-n % self.multiple for n in x.shape[-2:])
        x = F.pad(x, (0, right, 0, below), mode="replicate")
        for hook in self.encoder._forward_pre_hooks.values():  # forward_intermediates calls none: see nn.encoders
            (x,) = cast(Any, hook)(self.encoder, (x,))
        forward: Any = self.encoder.forward_intermediates
        taps = forward(x, indices=self.levels, stop_early=True, output_fmt="NCHW", intermediates_only=True)
        return list(taps)


def _to_stride(x: Tensor, own: int, wanted: int) -> Tensor:
    """A map [B, D, h, w] with a stride of `own` px at a stride of `wanted`: interpolated bilinearly, or max-pooled."""
    if own == wanted:
        return x
    if own < wanted:
        return F.max_pool2d(x, wanted // own)
    size = [n * own // wanted for n in x.shape[-2:]]
    return resize(x, size)


def _block(before: int, after: int, groups: int) -> nn.Sequential:
    """1x1 convolution without bias, and group norm."""
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.GroupNorm(groups, after))


class BoundaryBranch(nn.Module):
    """Taps of the given widths and strides -> logits [B, 1, h, w] at a stride of 4."""

    def __init__(self, widths: list[int], strides: list[int]) -> None:
        super().__init__()
        self.strides = strides
        self.reduce = nn.ModuleList(_block(w, 32, 4) for w in widths)
        self.last = nn.Conv2d(32 * len(widths), 1, 1)

    def forward(self, taps: list[Tensor]) -> Tensor:
        """Taps float [B, D, h, w], finest first -> logits float [B, 1, h, w]."""
        parts = [
            F.relu(_to_stride(reduce(tap), stride, STRIDE))
            for reduce, tap, stride in zip(self.reduce, taps, self.strides, strict=True)
        ]
        out: Tensor = self.last(torch.cat(parts, 1))
        return out


class DisplacementBranch(nn.Module):
    """Taps of the given widths and strides -> displacements [B, 2, h, w] (y, x), in cells, at a stride of 4.

    Training leaves a common shift undetermined; `mean`, float [2], measured afterwards, is subtracted in evaluation
    mode.
    """

    mean: Tensor

    def __init__(self, widths: list[int], strides: list[int]) -> None:
        super().__init__()
        self.strides = strides
        fine = sum(s <= STRIDE for s in strides)
        after = [*FINE_WIDTHS[:fine], *[WIDTH] * (len(widths) - len(FINE_WIDTHS[:fine]))]
        self.reduce = nn.ModuleList(_block(w, a, 8 if a == 64 else 16) for w, a in zip(widths, after, strict=True))
        coarse = sum(a for a, s in zip(after, strides, strict=True) if s > STRIDE)
        self.middle = _block(coarse, WIDTH, 16) if coarse else None
        self.end = nn.Sequential(
            _block(sum(after) - coarse + (WIDTH if coarse else 0), WIDTH, 16),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 2, 1, bias=False),
        )
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, taps: list[Tensor]) -> Tensor:
        """Taps float [B, D, h, w], finest first -> displacements float [B, 2, h, w]."""
        parts = [F.relu(reduce(tap)) for reduce, tap in zip(self.reduce, taps, strict=True)]
        fine = [_to_stride(p, s, STRIDE) for p, s in zip(parts, self.strides, strict=True) if s <= STRIDE]
        coarse = [_to_stride(p, s, 2 * STRIDE) for p, s in zip(parts, self.strides, strict=True) if s > STRIDE]
        if self.middle is not None:
            fine.append(_to_stride(F.relu(self.middle(torch.cat(coarse, 1))), 2 * STRIDE, STRIDE))
        out: Tensor = self.end(torch.cat(fine, 1))
        return out if self.training else out - self.mean.view(1, 2, 1, 1)
