"""Training samples: patches that say something, classes in equal numbers, batches that depend on the step alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from two_colours import colour_mask, frame, paint

from wsipipe.errors import ConfigError
from wsipipe.segment import data
from wsipipe.segment.data import Batches, find_samples


@pytest.fixture
def half_painted(stores):
    """The left store with labels/half: the left 200 px ignored, purple elsewhere."""
    store = stores["left"]
    mask = colour_mask(store.read(frame(store)))
    mask[:, :200] = 255
    paint(store, mask, "half")
    return store


def test_patches_of_nothing_but_255_are_left_out(half_painted):
    samples = find_samples([half_painted], "half", 2)
    expected = []
    for w in half_painted.patches().windows:
        mask = half_painted.labels("half").read(w)
        counts = [int((mask == v).sum()) for v in range(3)]
        values = tuple(v for v in range(3) if counts[v] >= 0.01 * 64 * 64)
        if values:
            expected.append((w, values))
    assert [(s.window, s.values) for s in samples] == expected
    assert 0 < len(samples) < len(half_painted.patches().windows)
    assert all(s.window.x_px + 64 > 200 for s in samples)


def test_masks_that_say_nothing_anywhere_are_refused(half_painted):
    paint(half_painted, np.full((331, 437), 255, np.uint8), "blank")
    with pytest.raises(ConfigError, match=r"labels/blank is 255 \(ignore\) in every patch"):
        find_samples([half_painted], "blank", 2)


def test_a_trace_of_a_class_does_not_make_a_patch_one_of_that_class(stores):
    store = stores["left"]
    window = store.patches().windows[0]
    mask = np.zeros((331, 437), np.uint8)
    mask[window.y_px, window.x_px : window.x_px + 40] = 1  # 40 of 4096 px: just below 1 %
    paint(store, mask, "trace")
    assert find_samples([store], "trace", 2)[0].values == (0,)
    mask[window.y_px, window.x_px : window.x_px + 41] = 1
    paint(store, mask, "trace")
    assert find_samples([store], "trace", 2)[0].values == (0, 1)


def test_every_class_is_drawn_in_equal_numbers(stores, monkeypatch):
    samples = find_samples([stores["left"], stores["right"]], "truth", 2)
    purple_only = [s for s in samples if s.values == (2,)][:1]
    pink_only = [s for s in samples if s.values == (1,)]
    assert len(pink_only) > 3
    batches = Batches([*pink_only, *purple_only], "truth", 4, seed=0)
    masks = torch.cat([batches(step)[1] for step in range(6)])
    assert (masks == 1).flatten(1).any(1).sum() == 12
    assert (masks == 2).flatten(1).any(1).sum() == 12


def test_three_classes_share_batches_of_four_over_the_steps(stores):
    samples = find_samples([stores["left"]], "truth", 2)
    batches = Batches(samples, "truth", 4, seed=0)
    drawn = [(step * 4 + b) % len(batches.pools) for step in range(3) for b in range(4)]
    assert len(batches.pools) == 3
    assert [drawn.count(k) for k in range(3)] == [4, 4, 4]
    for k, pool in enumerate(batches.pools):
        assert pool == [i for i, s in enumerate(samples) if k in s.values]


def test_a_batch_depends_on_nothing_but_its_step(stores):
    samples = find_samples([stores["left"]], "truth", 2)
    one, other = (Batches(samples, "truth", 4, seed=7) for _ in range(2))
    expected = [one(step) for step in range(4)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(other, [3, 0, 2, 1, 3]))
    torch.manual_seed(99)  # the global generator has no part in it
    found.append(other(2))
    for step, (x, y) in zip([3, 0, 2, 1, 3, 2], found, strict=True):
        assert torch.equal(x, expected[step][0])
        assert torch.equal(y, expected[step][1])
    assert not torch.equal(expected[0][0], expected[1][0])
    assert not torch.equal(Batches(samples, "truth", 4, seed=8)(0)[0], expected[0][0])


def test_shapes_types_and_range(stores):
    x, y = Batches(find_samples([stores["left"]], "truth", 2), "truth", 3, seed=0)(0)
    assert (x.shape, x.dtype) == ((3, 3, 64, 64), torch.float32)
    assert (y.shape, y.dtype) == ((3, 64, 64), torch.int64)
    assert x.min() >= 0
    assert x.max() <= 1


def test_image_and_mask_are_turned_alike(stores, monkeypatch):
    """With colour and blur left out, the mask of each view is what its own pixels say."""
    monkeypatch.setattr(data, "stain_jitter", lambda x, strength, g: x)
    monkeypatch.setattr(data, "blur", lambda x, chance, g: x)
    batches = Batches(find_samples([stores["left"]], "truth", 2), "truth", 8, seed=0)
    mixed = 0
    for step in range(4):
        x, y = batches(step)
        rgb = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(y.numpy(), np.stack([colour_mask(image) for image in rgb]))
        mixed += sum(len(np.unique(mask)) > 1 for mask in y.numpy())
    assert mixed > 4
