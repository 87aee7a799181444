"""Test-time augmentation: a window is transformed, predicted and transformed back; the outputs are averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

VIEWS = (1, 2, 4, 8)
"""Numbers of views: the window; and mirrored left-right; and both top-bottom; and all four transposed."""


def turned(x: Tensor, view: int) -> Tensor:
    """View 0..7 of square images [..., S, S]: bit 0 mirrors columns, bit 1 rows, then bit 2 transposes; exact."""
    mirrored = [-1 - bit for bit in (0, 1) if view >> bit & 1]
    x = x.flip(mirrored) if mirrored else x
    return x.transpose(-1, -2) if view & 4 else x


def turned_back(x: Tensor, view: int) -> Tensor:
    """The inverse of `turned`."""
    x = x.transpose(-1, -2) if view & 4 else x
    mirrored = [-1 - bit for bit in (0, 1) if view >> bit & 1]
    return x.flip(mirrored) if mirrored else x


def mean_over_views(network: Callable[[Tensor], Tensor], x: Tensor, views: int) -> Tensor:
    """Mean of the class probabilities over the first `views` views: images [B, 3, S, S] -> float32 [B, C, S, S].

    `network` maps images to logits [B, C, S, S]. `views` is one of `VIEWS`; each such set is a group, so that the
    answer turns with the window. Views are added in their order.
    """
    if views not in VIEWS:
        raise ValueError(f"{views} views; expected one of {', '.join(map(str, VIEWS))}")
    total = network(x).float().softmax(1)
    for view in range(1, views):
        image = turned(x, view).contiguous(memory_format=torch.channels_last)
        total = total + turned_back(network(image).float().softmax(1), view)
    return total / views if views > 1 else total
