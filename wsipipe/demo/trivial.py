"""Answer the demonstration cohort with colour alone, helped by the truth, as the mark a real answer has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.optimize import minimize
from skimage.color import rgb2hed, rgb2hsv

WORK_FACTOR = 2  # one working pixel is 2 x 2 level-0 pixels
BLURS_PX0 = (2.0, 4.0, 8.0, 16.0, 32.0)
BINS = 256
CHANNELS = ("red", "green", "blue", "hue", "saturation", "value", "haematoxylin", "eosin", "grey")
BLOCK_PX0 = 64
MIN_TRAIN_TISSUE = 0.25
RIDGE = 1e-3

RGB = NDArray[np.uint8]
Truth = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrivialAnswer:
    """A trivial answer: its `name`, its Dice over the tissue pixels of all slides, and the setting found for it."""

    name: str
    dice: float
    found: str = ""


def _shrunk(rgb: RGB) -> NDArray[np.float32]:
    """Box average of rgb uint8 [h, w, 3] to working pixels, float32 [h', w', 3] in 0 to 1."""
    h, w = rgb.shape[0] // WORK_FACTOR, rgb.shape[1] // WORK_FACTOR
    blocks = rgb[: h * WORK_FACTOR, : w * WORK_FACTOR].reshape(h, WORK_FACTOR, w, WORK_FACTOR, 3)
    mean: NDArray[np.float32] = blocks.mean((1, 3), dtype=np.float32) / 255
    return mean


def _channels(rgb: RGB) -> Iterator[NDArray[np.float32]]:
    """Every colour channel of rgb uint8 [h, w, 3], float32 [h', w'] in working pixels, in the order of CHANNELS."""
    small = _shrunk(rgb)
    yield from np.moveaxis(small, -1, 0)
    yield from np.moveaxis(rgb2hsv(small).astype(np.float32), -1, 0)
    yield from np.moveaxis(rgb2hed(small)[..., :2].astype(np.float32), -1, 0)
    yield small.mean(-1)


def _blurred(rgb: RGB, tissue: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Values of the n tissue pixels under each channel and blur, float32 [channels, blurs, n].

    The blur averages over tissue only, so that glass does not leak into a tissue value.
    """
    weight, channels = tissue.astype(np.float32), list(_channels(rgb))
    out = np.empty((len(CHANNELS), len(BLURS_PX0), int(tissue.sum())), np.float32)
    for b, sigma_px0 in enumerate(BLURS_PX0):
        share = ndi.gaussian_filter(weight, sigma_px0 / WORK_FACTOR, truncate=3)[tissue]
        for c, channel in enumerate(channels):
            out[c, b] = ndi.gaussian_filter(channel * weight, sigma_px0 / WORK_FACTOR, truncate=3)[tissue] / share
    return out


def _best_dice(positives: Floats, negatives: Floats) -> float:
    """Best Dice over all cuts of ordered bins, on either side, from the pixel counts [bins] of the two kinds."""
    total = positives.sum()
    best = 0.0
    for order in (slice(None), slice(None, None, -1)):
        hit, false = np.cumsum(positives[order]), np.cumsum(negatives[order])
        best = max(best, float((2 * hit / np.maximum(hit + false + total, 1)).max()))
    return best


def best_colour_threshold(rgbs: Sequence[RGB], truths: Sequence[Truth], positive: int = 2) -> TrivialAnswer:
    """The best single threshold on any blurred colour channel, chosen with the truth of the same slides.

    `rgbs` are uint8 [h, w, 3] and `truths` uint8 [h, w] (0 glass, not scored) in the level-0 frame. Swept are all
    of CHANNELS, BLURS_PX0, both directions and BINS thresholds over the pooled range of values.
    """
    values, kinds = [], []
    for rgb, truth in zip(rgbs, truths, strict=True):
        h, w = rgb.shape[0] // WORK_FACTOR, rgb.shape[1] // WORK_FACTOR
        small = truth[::WORK_FACTOR, ::WORK_FACTOR][:h, :w]
        values.append(_blurred(rgb, small > 0))
        kinds.append(small[small > 0] == positive)
    pooled, is_positive = np.concatenate(values, -1), np.concatenate(kinds)
    best = TrivialAnswer("best colour threshold", 0.0)
    for c, channel in enumerate(CHANNELS):
        for b, sigma_px0 in enumerate(BLURS_PX0):
            row = pooled[c, b]
            span = (float(row.min()), float(row.max()))
            counts = [np.histogram(row[kind], BINS, span)[0].astype(float) for kind in (is_positive, ~is_positive)]
            dice = _best_dice(*counts)
            if dice > best.dice:
                best = TrivialAnswer(best.name, dice, f"threshold of {channel} blurred by {sigma_px0:g} level-0 px")
    return best


def _block_features(rgb: RGB, truth: Truth, positive: int) -> tuple[Floats, Floats]:
    """Colour histograms and pixel counts of the n tissue-bearing BLOCK_PX0 blocks of a slide.

    Returns features float [n, 88] over tissue pixels (8 bins per channel, then joint 4 x 4 x 4; each sums to 1) and
    counts float [n, 2] (positive, other tissue pixels).
    """
    h, w = truth.shape
    across = -(-w // BLOCK_PX0)
    block = (np.arange(h)[:, None] // BLOCK_PX0 * across + np.arange(w) // BLOCK_PX0)[truth > 0]
    pixels, is_positive = rgb[truth > 0].astype(np.int64), truth[truth > 0] == positive
    blocks = -(-h // BLOCK_PX0) * across

    def table(codes: NDArray[np.int64], size: int) -> Floats:
        return np.bincount(block * size + codes, minlength=blocks * size).reshape(blocks, size).astype(float)

    quarter = pixels // 64
    tables = [table(pixels[:, c] // 32, 8) for c in range(3)]
    tables.append(table(quarter[:, 0] * 16 + quarter[:, 1] * 4 + quarter[:, 2], 64))
    counts = table((~is_positive).astype(np.int64), 2)
    bears = counts.sum(1) > 0
    return np.concatenate(tables, 1)[bears] / counts[bears].sum(1, keepdims=True), counts[bears]


def _fit_logistic(features: Floats, target: Floats) -> Floats:
    """Ridge logistic regression of target [n] in 0 to 1 on features [n, k]: weights [k + 1], the last one the bias."""
    design = np.concatenate([features, np.ones((len(features), 1))], 1)
    # Both kinds weigh the same, or a rare positive kind would be fitted as noise.
    share = np.clip(target.mean(), 1e-6, 1 - 1e-6)
    weight = np.where(target > 0.5, 0.5 / share, 0.5 / (1 - share)) / len(target)

    def loss(theta: Floats) -> tuple[float, Floats]:
        score = design @ theta
        slope = weight * (1 / (1 + np.exp(-np.clip(score, -60, 60))) - target)
        value = weight @ (np.logaddexp(0, score) - target * score) + 0.5 * RIDGE * theta[:-1] @ theta[:-1]
        return float(value), design.T @ slope + RIDGE * np.append(theta[:-1], 0)

    fitted: Floats = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B").x
    return fitted


def histogram_classifier(
    train_rgbs: Sequence[RGB],
    train_truths: Sequence[Truth],
    test_rgbs: Sequence[RGB],
    test_truths: Sequence[Truth],
    positive: int = 2,
) -> TrivialAnswer:
    """A fully supervised classifier of block colour histograms, with the test threshold that suits it best.

    Images are uint8 [h, w, 3], truths uint8 [h, w] in the level-0 frame. It learns from the pixel truth of the train
    slides; the Dice is pooled over the tissue pixels of the test slides.
    """
    train = [_block_features(rgb, truth, positive) for rgb, truth in zip(train_rgbs, train_truths, strict=True)]
    test = [_block_features(rgb, truth, positive) for rgb, truth in zip(test_rgbs, test_truths, strict=True)]
    features, counts = (np.concatenate([part[k] for part in train]) for k in (0, 1))
    full = counts.sum(1) >= MIN_TRAIN_TISSUE * BLOCK_PX0**2
    features, counts = features[full], counts[full]
    mean, spread = features.mean(0), features.std(0) + 1e-3
    theta = _fit_logistic((features - mean) / spread, (counts[:, 0] > counts[:, 1]).astype(float))
    features, counts = (np.concatenate([part[k] for part in test]) for k in (0, 1))
    score = ((features - mean) / spread) @ theta[:-1]
    order = np.argsort(-score, kind="stable")
    hit, false = np.cumsum(counts[order, 0]), np.cumsum(counts[order, 1])
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    dice = (2 * hit / np.maximum(hit + false + counts[:, 0].sum(), 1))[last_of_tie]
    return TrivialAnswer("colour histogram classifier", float(dice.max()))
