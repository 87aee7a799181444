"""Noise-robust cross-entropy plus soft Dice; 255 is ignored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.labels import IGNORE


def segmentation_loss(logits: Tensor, mask: Tensor, q: float = 0.0) -> Tensor:
    """Entropy of `noise_robust_entropy` plus soft Dice: logits float [B, C, H, W], mask int64 [B, H, W] -> scalar.

    A batch of ignored pixels alone has loss 0 and no gradient.
    """
    if not (mask != IGNORE).any():
        return logits.sum() * 0
    return noise_robust_entropy(logits, mask, q) + soft_dice_loss(logits, mask)


def noise_robust_entropy(logits: Tensor, mask: Tensor, q: float) -> Tensor:
    """Mean of (1 - p_y^q) / q over the pixels that are not ignored; cross-entropy for q = 0.

    p_y is the probability of the pixel's class.

    Generalised cross-entropy (Zhang & Sabuncu, NeurIPS 2018, equation 6): q -> 0 is cross-entropy, q = 1 the mean
    absolute error, whose gradient is bounded for wrong labels. The authors use 0.7.
    """
    if q == 0:
        return F.cross_entropy(logits, mask, ignore_index=IGNORE)
    known = mask != IGNORE
    log_p = logits.log_softmax(1).gather(1, mask.where(known, 0).unsqueeze(1)).squeeze(1)
    return ((1 - torch.exp(q * log_p)) / q)[known].mean()


def soft_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - mean over classes of (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), ignored pixels left out."""
    known = mask != IGNORE
    target = F.one_hot(mask.where(known, 0), logits.shape[1]).movedim(-1, 1) * known.unsqueeze(1)
    p = logits.softmax(1) * known.unsqueeze(1)
    overlap, total = (p * target).sum((0, 2, 3)), (p + target).sum((0, 2, 3))
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


def corrected_by_teacher(mask: Tensor, p: Tensor, allowed: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """A mask corrected by a teacher: int64 [B, H, W].

    mask: int64 [B, H, W]; p: the teacher's probabilities float [B, C, H, W]; allowed: bool [B, C], the values that
    occur in the mask of the slide, so that a class excluded by its weak label is never taught; valid: bool [B, H, W],
    false where there are no pixels to learn from. Where the teacher's probability of an allowed value reaches the
    threshold, ignored pixels get that value, and pixels whose mask disagrees become ignored.
    """
    top, value = p.max(1)
    sure = (top >= threshold) & valid & allowed.gather(1, value.flatten(1)).view_as(value)
    ignored = mask == IGNORE
    out = mask.where(~(sure & ignored), value)
    return out.masked_fill(sure & ~ignored & (value != mask), IGNORE)
