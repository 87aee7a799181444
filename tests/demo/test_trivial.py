"""Check the trivial answers against planted colours and against a slow search."""

import re

import numpy as np
import pytest
from scipy import ndimage as ndi
from skimage.color import rgb2hed, rgb2hsv

from wsipipe.demo import trivial
from wsipipe.demo.trivial import best_colour_threshold, histogram_classifier


def slide(shift: int, seed: int, side: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Noisy tissue on glass; about a third of its 64 px0 blocks is positive and greener by `shift`."""
    rng = np.random.default_rng(seed)
    blocks = 1 + (rng.random((side // 64, side // 64)) < 0.3)
    blocks[2, 2], blocks[1, 2] = 2, 1
    truth = np.kron(np.pad(blocks[1:-1, 1:-1], 1), np.ones((64, 64), int)).astype(np.uint8)
    rgb = np.full((side, side, 3), 243.0)
    rgb[truth > 0] = (200, 140, 190)
    rgb[..., 1] += shift * (truth == 2)
    return np.clip(rgb + rng.normal(0, 12, rgb.shape), 0, 255).astype(np.uint8), truth


def slides(shift: int, seeds: range, side: int = 512) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rgbs, truths = zip(*(slide(shift, seed, side) for seed in seeds), strict=True)
    return list(rgbs), list(truths)


@pytest.mark.parametrize("shift", [40, -40])
def test_a_planted_colour_is_found_by_both(shift: int) -> None:
    train, test = slides(shift, range(2)), slides(shift, range(2, 4))
    threshold = best_colour_threshold(*test)
    assert threshold.dice > 0.97
    assert re.fullmatch(r"threshold of \w+ blurred by \d+ level-0 px", threshold.found)
    assert histogram_classifier(*train, *test).dice > 0.97


def test_equal_colours_leave_both_at_the_level_of_calling_everything() -> None:
    train, test = slides(0, range(2), 1024), slides(0, range(2, 4), 1024)
    share = (np.stack(test[1]) == 2).sum() / (np.stack(test[1]) > 0).sum()
    everything = 2 * share / (1 + share)
    assert everything - 1e-6 <= best_colour_threshold(*test).dice < everything + 0.1
    assert everything - 1e-6 <= histogram_classifier(*train, *test).dice < everything + 0.1


def test_positive_names_the_class_in_question() -> None:
    rgbs, truths = slides(40, range(1))
    assert best_colour_threshold(rgbs, truths, positive=1).dice > 0.97
    assert histogram_classifier(rgbs, truths, rgbs, truths, positive=1).dice > 0.97


def slow_best(rgb: np.ndarray, truth: np.ndarray) -> float:
    """Every channel, blur, side and every value between the bins, one by one."""
    h, w = truth.shape
    small = rgb.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)) / 255
    truth = truth[::2, ::2]
    hsv, hed = rgb2hsv(small), rgb2hed(small)
    maps = [*np.moveaxis(small, -1, 0), *np.moveaxis(hsv, -1, 0), hed[..., 0], hed[..., 1], small.mean(-1)]
    best, tissue = 0.0, truth > 0
    for channel in maps:
        for sigma in (1, 2, 4, 8, 16):
            blur = ndi.gaussian_filter(channel * tissue, sigma, truncate=3)
            value = (blur / np.maximum(ndi.gaussian_filter(tissue * 1.0, sigma, truncate=3), 1e-9))[tissue]
            wanted = truth[tissue] == 2
            for cut in np.linspace(value.min(), value.max(), trivial.BINS + 1):
                for called in (value >= cut, value <= cut):
                    best = max(best, 2 * (called & wanted).sum() / (called.sum() + wanted.sum()))
    return best


@pytest.mark.parametrize("shift", [0, 4, 8])
def test_the_sweep_agrees_with_a_slow_search(shift: int) -> None:
    rgb, truth = slide(shift, seed=7, side=256)
    assert best_colour_threshold([rgb], [truth]).dice == pytest.approx(slow_best(rgb, truth), abs=0.004)


def test_odd_sizes_and_partial_blocks_are_scored() -> None:
    rgb, truth = slide(40, seed=1)
    rgb, truth = rgb[:461, :433], truth[:461, :433]
    assert best_colour_threshold([rgb], [truth]).dice > 0.97
    assert histogram_classifier([rgb], [truth], [rgb], [truth]).dice > 0.97


def test_glass_is_never_scored() -> None:
    rgb, truth = slide(40, seed=1)
    recoloured = rgb.copy()
    recoloured[truth == 0] = (200, 180, 190)  # glass in the colour of the positive class
    one, other = (histogram_classifier([a], [truth], [a], [truth]).dice for a in (rgb, recoloured))
    assert one == pytest.approx(other)
    assert best_colour_threshold([recoloured], [truth]).dice > 0.95
