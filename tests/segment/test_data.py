"""Training samples: patches that say something, classes in equal numbers, batches that depend on the step alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from support.two_colours import colour_mask, frame, paint

from wsipipe.errors import ConfigError
from wsipipe.nn import augment
from wsipipe.nn.augment import random_zoom
from wsipipe.segment import data
from wsipipe.segment.data import Batches, Variation, find_samples, near_borders
from wsipipe.store import SlideStore


@pytest.fixture
def half_painted(stores: dict[str, SlideStore]) -> Any:
    """The left store with labels/half: the left 200 px ignored, purple elsewhere."""
    store = stores["left"]
    mask = colour_mask(store.read(frame(store)))
    mask[:, :200] = 255
    paint(store, mask, "half")
    return store


def test_patches_of_nothing_but_255_are_left_out(half_painted: Any) -> None:
    samples = find_samples([half_painted], "half", 2)
    expected = []
    for w in half_painted.patches().windows:
        mask = half_painted.labels("half").read(w)
        counts = [int((mask == v).sum()) for v in range(3)]
        values = tuple(v for v in range(3) if counts[v] >= 0.01 * 64 * 64)
        if values:
            expected.append((w, values))
    assert [(s.window, s.values) for s in samples] == expected
    for s in samples:
        mask = half_painted.labels("half").read(s.window)
        assert s.labelled == pytest.approx((mask != 255).mean())
        quarters = [mask[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
        for quarter, pure in zip(quarters, s.pure, strict=True):
            shares = [(quarter == v).mean() for v in range(3)]
            assert pure == (int(np.argmax(shares)) if max(shares) >= 0.98 else -1)
    assert {v for s in samples for v in s.pure} >= {-1, 0, 2}
    assert 0 < len(samples) < len(half_painted.patches().windows)
    assert all(s.window.x_px + 64 > 200 for s in samples)


def test_masks_that_say_nothing_anywhere_are_refused(half_painted: Any) -> None:
    paint(half_painted, np.full((331, 437), 255, np.uint8), "blank")
    with pytest.raises(ConfigError, match=r"labels/blank is 255 \(ignore\) in every patch"):
        find_samples([half_painted], "blank", 2)


def test_a_trace_of_a_class_does_not_make_a_patch_one_of_that_class(stores: dict[str, SlideStore]) -> None:
    store = stores["left"]
    window = store.patches().windows[0]
    mask = np.zeros((331, 437), np.uint8)
    mask[window.y_px, window.x_px : window.x_px + 40] = 1  # 40 of 4096 px: just below 1 %
    paint(store, mask, "trace")
    assert find_samples([store], "trace", 2)[0].values == (0,)
    mask[window.y_px, window.x_px : window.x_px + 41] = 1
    paint(store, mask, "trace")
    assert find_samples([store], "trace", 2)[0].values == (0, 1)


PLAIN = Variation(shift=False)


def test_every_class_is_drawn_in_equal_numbers(stores: dict[str, SlideStore]) -> None:
    samples = find_samples([stores["left"], stores["right"]], "truth", 2)
    purple_only = [s for s in samples if s.values == (2,)][:1]
    pink_only = [s for s in samples if s.values == (1,)]
    assert len(pink_only) > 3
    batches = Batches([*pink_only, *purple_only], "truth", 4, 0, PLAIN)
    masks = torch.cat([batches(step).mask for step in range(6)])
    assert (masks == 1).flatten(1).any(1).sum() == 12
    assert (masks == 2).flatten(1).any(1).sum() == 12


def test_of_each_class_every_slide_is_drawn_alike_and_surer_patches_more_often(stores: dict[str, SlideStore]) -> None:
    left = [s for s in find_samples([stores["left"]], "truth", 2) if s.values == (1,)][:1]
    right = [s for s in find_samples([stores["right"]], "truth", 2) if s.values == (1,)]
    right = [replace(right[0], labelled=0.9), *(replace(s, labelled=0.1 / 9) for s in (right * 9)[:9])]
    batches = Batches([*left, *right], "truth", 4, 0, PLAIN)
    g = torch.Generator().manual_seed(0)
    drawn = [batches._drawn(k, g) for k in range(2000)]
    assert sum(s.store is left[0].store for s in drawn) == pytest.approx(1000, abs=120)
    from_right = [s for s in drawn if s.store is not left[0].store]
    assert sum(s is right[0] for s in from_right) / len(from_right) == pytest.approx(0.9, abs=0.04)


def test_windows_lie_between_patches_and_what_is_not_held_is_ignored(
    stores: dict[str, SlideStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "stain_jitter", lambda x, strength, g: x)
    monkeypatch.setattr(augment, "blur", lambda x, chance, g: x)
    monkeypatch.setattr(augment, "random_dihedral", lambda g, n: torch.zeros(n, dtype=torch.long))
    store = stores["left"]
    held = np.zeros((331 + 200, 437 + 200), bool)
    for w in store.patches().windows:
        held[100 + w.y_px : 164 + w.y_px, 100 + w.x_px : 164 + w.x_px] = True
    held[:100] = held[:, :100] = held[431:] = held[:, 537:] = False
    batches = Batches(find_samples([store], "truth", 2), "truth", 8, 0)
    g, between = data.generator(0, 4, 0), 0
    drawn = [batches._drawn(b, g) for b in range(8)]
    moved = [batches._shift(g) for _ in drawn]
    batch = batches(0)
    for k, (s, (dx, dy)) in enumerate(zip(drawn, moved, strict=True)):
        x, y = s.window.x_px + dx, s.window.y_px + dy
        between += (dx, dy) != (0, 0)
        inside = held[100 + y : 164 + y, 100 + x : 164 + x]
        np.testing.assert_array_equal(batch.valid[k].numpy(), inside)
        assert (batch.mask[k].numpy()[~inside] == 255).all()
        rgb = (batch.rgb[k] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(batch.mask[k].numpy()[inside], colour_mask(rgb)[inside])
    assert between >= 7


def test_a_mosaic_is_of_pure_quarters_of_every_value_alike(
    stores: dict[str, SlideStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "stain_jitter", lambda x, strength, g: x)
    monkeypatch.setattr(augment, "blur", lambda x, chance, g: x)
    samples = find_samples(list(stores.values())[1:], "truth", 2)
    batches = Batches(samples, "truth", 8, 0, Variation(mosaic_prob=1.0))
    found = np.zeros(3)
    for step in range(12):
        batch = batches(step)
        assert not batch.valid.any(), "no teacher speaks of what was put together"
        rgb = (batch.rgb * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for mask, image in zip(batch.mask.numpy(), rgb, strict=True):
            np.testing.assert_array_equal(mask, colour_mask(image))
            for y, x in ((0, 0), (0, 32), (32, 0), (32, 32)):
                shares = [(mask[y : y + 32, x : x + 32] == v).mean() for v in range(3)]
                assert max(shares) >= 0.98
                found[int(np.argmax(shares))] += 1
    assert found.sum() == 12 * 8 * 4
    assert found / found.sum() == pytest.approx([1 / 3] * 3, abs=0.08)


@pytest.mark.parametrize("zoom", [1.0, 1.25, 2.0])
def test_zoom_keeps_image_and_mask_together(
    stores: dict[str, SlideStore], monkeypatch: pytest.MonkeyPatch, zoom: float
) -> None:
    monkeypatch.setattr(augment, "stain_jitter", lambda x, strength, g: x)
    monkeypatch.setattr(augment, "blur", lambda x, chance, g: x)
    batches = Batches(find_samples([stores["left"]], "truth", 2), "truth", 8, 0, Variation(max_zoom=zoom, shift=False))
    batch = batches(0)
    assert batch.rgb.shape == (8, 3, 64, 64)
    rgb = (batch.rgb * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    drawn = np.stack([colour_mask(image) for image in rgb])
    agree = (drawn == batch.mask.numpy())[batch.valid.numpy()]
    assert agree.mean() > (0.97 if zoom > 1 else 0.9999), "only borders, which are interpolated, may differ"


def test_a_zoomed_image_is_the_middle_of_the_larger_one() -> None:
    x = torch.linspace(0, 1, 96).expand(2, 3, 96, 96).contiguous()
    both = x[:, :2].clone()
    for zoom in (1.0001, 1.5):
        g = torch.Generator().manual_seed(1)
        image, masks = random_zoom(x, both, 64, zoom, g)
        assert image.shape == (2, 3, 64, 64)
        slope = (image[:, 0, 0, 40] - image[:, 0, 0, 20]) / 20 * 95
        assert (slope >= 1 / zoom - 1e-3).all()
        assert (slope <= zoom + 1e-3).all()
        torch.testing.assert_close(image.mean((1, 2, 3)), torch.full((2,), 0.5), atol=1e-3, rtol=0)
        assert (masks - image[:, :2]).abs().max() <= 0.5 * zoom / 95 + 1e-4


def test_a_batch_splits_into_equal_parts_and_processes_share_it(stores: dict[str, SlideStore]) -> None:
    batches = Batches(find_samples([stores["left"]], "truth", 2), "truth", 4, 0, PLAIN)
    whole = batches(1)
    parts = whole.split(2)
    assert [len(p.rgb) for p in parts] == [2, 2]
    torch.testing.assert_close(torch.cat([p.mask for p in parts]), whole.mask)
    shares = [batches(1, only=slice(rank, None, 2)) for rank in range(2)]
    assert [len(s.rgb) for s in shares] == [2, 2]
    values = [sorted(m.flatten().bincount(minlength=256).tolist()) for s in shares for m in s.mask]
    assert sorted(values) == sorted(sorted(m.flatten().bincount(minlength=256).tolist()) for m in whole.mask)


def test_three_classes_share_batches_of_four_over_the_steps(stores: dict[str, SlideStore]) -> None:
    samples = find_samples([stores["left"]], "truth", 2)
    batches = Batches(samples, "truth", 4, seed=0)
    drawn = [(step * 4 + b) % len(batches.pools) for step in range(3) for b in range(4)]
    assert len(batches.pools) == 3
    assert [drawn.count(k) for k in range(3)] == [4, 4, 4]
    for k, slides in enumerate(batches.pools):
        assert [p.members for p in slides] == [[i for i, s in enumerate(samples) if k in s.values]]


def test_a_batch_depends_on_nothing_but_its_step(stores: dict[str, SlideStore]) -> None:
    samples = find_samples([stores["left"]], "truth", 2)
    one, other = (Batches(samples, "truth", 4, 7, Variation(1.2, True, 0.3)) for _ in range(2))
    expected = [one(step) for step in range(4)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(other, [3, 0, 2, 1, 3]))
    torch.manual_seed(99)  # the global generator has no part in it
    found.append(other(2))
    for step, batch in zip([3, 0, 2, 1, 3, 2], found, strict=True):
        assert torch.equal(batch.rgb, expected[step].rgb)
        assert torch.equal(batch.mask, expected[step].mask)
    assert not torch.equal(expected[0].rgb, expected[1].rgb)
    assert not torch.equal(Batches(samples, "truth", 4, seed=8)(0).rgb, expected[0].rgb)


def test_shapes_types_and_range(stores: dict[str, SlideStore]) -> None:
    batch = Batches(find_samples([stores["left"]], "truth", 2), "truth", 3, seed=0)(0)
    x, y = batch.rgb, batch.mask
    assert (batch.valid.shape, batch.valid.dtype) == ((3, 64, 64), torch.bool)
    assert batch.allowed.tolist() == [[True, True, True]] * 3
    assert (x.shape, x.dtype) == ((3, 3, 64, 64), torch.float32)
    assert (y.shape, y.dtype) == ((3, 64, 64), torch.int64)
    assert x.min() >= 0
    assert x.max() <= 1


def test_image_and_mask_are_turned_alike(stores: dict[str, SlideStore], monkeypatch: pytest.MonkeyPatch) -> None:
    """With colour and blur left out, the mask of each view is what its own pixels say."""
    monkeypatch.setattr(augment, "stain_jitter", lambda x, strength, g: x)
    monkeypatch.setattr(augment, "blur", lambda x, chance, g: x)
    batches = Batches(find_samples([stores["left"]], "truth", 2), "truth", 8, 0, PLAIN)
    mixed = 0
    for step in range(4):
        x, y = batches(step).rgb, batches(step).mask
        rgb = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(y.numpy(), np.stack([colour_mask(image) for image in rgb]))
        mixed += sum(len(np.unique(mask)) > 1 for mask in y.numpy())
    assert mixed > 4


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 254, 255])),
    st.integers(1, 4),
)
def test_a_pixel_is_near_a_border_where_a_square_around_it_holds_two_values(mask: np.ndarray, far: int) -> None:
    found = near_borders(mask, far)
    for y, x in np.ndindex(mask.shape):
        around = mask[max(0, y - far) : y + far + 1, max(0, x - far) : x + far + 1]
        assert found[y, x] == (len(set(around[around != 255].tolist())) > 1)


def test_masks_are_ignored_near_borders_even_those_outside_of_the_window(stores: dict[str, SlideStore]) -> None:
    paint(
        stores["left"], 1 + (np.mgrid[:331, :437][1] // 64 % 2).astype(np.uint8), "columns"
    )  # borders between patches
    samples = find_samples([stores["left"]], "columns", 2)
    far = 9
    plain, careful = (Batches(samples, "columns", 8, 3, replace(PLAIN, border_px=b)) for b in (0, far))
    whole = stores["left"].labels("columns").read(frame(stores["left"]))
    near, outside = near_borders(whole, far), 0
    for sample in samples:
        w = sample.window
        inside = np.s_[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
        expected = np.where(near[inside], 255, whole[inside])
        np.testing.assert_array_equal(careful._mask(sample.store, w), expected)
        np.testing.assert_array_equal(plain._mask(sample.store, w), whole[inside])
        outside += int((near[inside] & ~near_borders(np.ascontiguousarray(whole[inside]), far)).sum())
    assert outside > 0
    one, other = plain(0), careful(0)
    torch.testing.assert_close(one.rgb, other.rgb)
    assert ((other.mask == one.mask) | (other.mask == 255)).all()
    assert (other.mask == 255).sum() > (one.mask == 255).sum()
    assert torch.equal(one.valid, other.valid)  # a teacher may say what lies there
