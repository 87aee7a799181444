"""Augmentation: exact symmetries, stain changes of a known size, and every draw from the generator that was given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from wsipipe.nn.augment import (
    STAINS,
    TissueAugment,
    blur,
    dihedral,
    enlargement,
    random_crop,
    random_dihedral,
    stain_jitter,
    uniform,
)

HE = (0.75, 0.52, 0.70)
"""A typical colour of H&E tissue, RGB 0..1."""

elements = st.integers(0, 7)


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int = 0, side: int = 5, channels: int = 3) -> Tensor:
    return torch.rand((1, channels, side, side), generator=seeded(seed))


def turned(x: Tensor, element: int) -> Tensor:
    return dihedral(x, torch.full((len(x),), element))


def coloured(rgb: tuple[float, ...], count: int = 1, side: int = 4) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1).expand(count, 3, side, side).contiguous()


def test_dihedral_equals_transposition_then_flips_of_numpy() -> None:
    x = image()
    for e in range(8):
        want = x[0].numpy()
        want = want.swapaxes(1, 2) if e & 4 else want
        want = np.flip(want, 1) if e & 2 else want
        want = np.flip(want, 2) if e & 1 else want
        np.testing.assert_array_equal(turned(x, e)[0].numpy(), want)


def test_dihedral_gives_all_rotations_and_mirrored_rotations_of_the_square() -> None:
    x = image()[0].numpy()
    wanted = [np.rot90(y, k, (1, 2)) for y in (x, x[:, :, ::-1]) for k in range(4)]
    got = [turned(image(), e)[0].numpy() for e in range(8)]
    assert all(sum(np.array_equal(w, g) for g in got) == 1 for w in wanted)


@given(elements, elements)
def test_dihedral_is_closed_two_elements_make_a_third(first: int, second: int) -> None:
    twice = turned(turned(image(), first), second)
    assert sum(torch.equal(twice, turned(image(), e)) for e in range(8)) == 1


@given(elements)
def test_every_element_of_the_dihedral_group_has_one_inverse(e: int) -> None:
    assert sum(torch.equal(turned(turned(image(), e), i), image()) for i in range(8)) == 1


def test_element_zero_is_the_identity() -> None:
    assert torch.equal(turned(image(), 0), image())


@given(elements, st.integers(0, 100))
def test_dihedral_moves_image_and_mask_alike_and_keeps_mask_values(e: int, seed: int) -> None:
    x = image(seed, 6)
    mask = (x[:, :1] * 256).to(torch.uint8)
    moved = turned(mask, e)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved, (turned(x, e)[:, :1] * 256).to(torch.uint8))


def test_dihedral_turns_each_image_of_a_batch_by_its_own_element() -> None:
    x = torch.cat([image(s) for s in range(8)])
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    together = dihedral(x, order)
    for i, e in enumerate(order.tolist()):
        assert torch.equal(together[i : i + 1], turned(x[i : i + 1], e))


def test_random_dihedral_draws_all_eight_elements_about_evenly() -> None:
    counts = torch.bincount(random_dihedral(seeded(0), 8000), minlength=8)
    assert len(counts) == 8
    assert 850 < int(counts.min()) <= int(counts.max()) < 1150


def test_uniform_stays_in_its_range_and_fills_it() -> None:
    x = uniform((10_000,), -2.0, 3.0, seeded(0))
    assert -2 <= float(x.min()) < -1.99
    assert 2.99 < float(x.max()) < 3


def test_stain_vectors_are_near_unit_length() -> None:
    np.testing.assert_allclose(np.linalg.norm(STAINS, axis=1), 1, atol=0.01)


def test_stain_jitter_of_strength_zero_changes_nothing() -> None:
    x = image(side=32)
    torch.testing.assert_close(stain_jitter(x, 0.0, seeded(0)), x.clamp(min=1 / 255), atol=1e-5, rtol=0)


@pytest.mark.parametrize("colour", [HE, (0.89, 0.63, 0.75), (0.41, 0.24, 0.56)], ids=["mean", "stroma", "nucleus"])
def test_stain_jitter_changes_tissue_by_about_five_grey_levels_and_never_beyond_recognition(
    colour: tuple[float, float, float],
) -> None:
    x = coloured(colour, 2000)
    change = (stain_jitter(x, 0.2, seeded(0)) - x)[:, :, 0, 0] * 255
    assert 4 < float(change.abs().mean()) < 7
    assert 15 < float(change.abs().max()) < 25
    assert float(change.mean(0).abs().max()) < 0.5, "the colour drifts one way on average"


def test_stain_jitter_is_one_change_a_picture_not_one_a_pixel() -> None:
    y = stain_jitter(coloured(HE, 8), 0.2, seeded(0))
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
    assert len(torch.unique(y[:, :, 0, 0], dim=0)) == 8


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_stain_jitter_stays_between_black_and_white(strength: float) -> None:
    x = torch.cat([image(s, 32) for s in range(16)] + [torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    y = stain_jitter(x, strength, seeded(0))
    assert bool(torch.isfinite(y).all())
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1


def test_stain_jitter_leaves_glass_white() -> None:
    white = stain_jitter(coloured((1.0, 1.0, 1.0), 500), 0.2, seeded(0))
    assert float(white.min()) > 1 - 1e-5
    nearly = coloured((0.96, 0.96, 0.96), 500)
    assert float((stain_jitter(nearly, 0.2, seeded(0)) - nearly).abs().max()) * 255 < 8


def test_a_crop_of_the_whole_image_at_its_own_size_is_the_image() -> None:
    x = image(side=24)
    torch.testing.assert_close(random_crop(x, 24, (1.0, 1.0), seeded(0)), x, atol=1e-4, rtol=0)


def test_a_crop_of_scale_one_is_a_window_of_the_image_without_zoom() -> None:
    ramp = torch.arange(48.0).view(1, 1, 1, 48).expand(4, 1, 48, 48) / 48
    y = random_crop(ramp, 24, (1.0, 1.0), seeded(0))
    assert y.shape == (4, 1, 24, 24)
    torch.testing.assert_close(y[..., 1:-1].diff(dim=-1), torch.full((4, 1, 24, 21), 1 / 48), atol=1e-4, rtol=0)
    assert len(torch.unique(y[:, 0, 0, 0])) == 4


@given(st.integers(0, 1000), st.floats(0.1, 1.0))
def test_a_crop_of_area_a_shows_a_square_of_that_area_inside_the_image(seed: int, area: float) -> None:
    ramp = torch.arange(32.0).view(1, 1, 32, 1).expand(1, 1, 32, 32) / 32
    y = random_crop(ramp, 16, (area, area), seeded(seed))
    steps = y[0, 0, 2:-2, 0].diff() * 32
    torch.testing.assert_close(steps, torch.full_like(steps, area**0.5), atol=1e-3, rtol=0)
    assert float(y.min()) >= -1e-5
    assert float(y.max()) <= 31 / 32 + 1e-5


@given(st.floats(0, 1), st.integers(0, 100))
def test_crop_and_blur_keep_a_constant_image_constant(value: float, seed: int) -> None:
    x = torch.full((2, 3, 12, 12), value)
    torch.testing.assert_close(random_crop(x, 8, (0.4, 1.0), seeded(seed)), x[..., :8, :8], atol=1e-5, rtol=0)
    torch.testing.assert_close(blur(x, 1.0, seeded(seed)), x, atol=1e-5, rtol=0)


def test_blur_spreads_one_pixel_into_the_binomial_kernel() -> None:
    x = torch.zeros(1, 2, 5, 5)
    x[:, 1, 2, 2] = 16
    y = blur(x, 1.0, seeded(0))
    assert y[0, 1, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert float(y[0, 0].abs().max()) == 0


def test_blur_touches_the_asked_share_of_images_and_no_other() -> None:
    x = torch.cat([image(s) for s in range(1000)])
    y = blur(x, 0.3, seeded(0))
    touched = (x != y).flatten(1).any(1)
    assert 0.25 < float(touched.float().mean()) < 0.35
    assert torch.equal(blur(x, 0.0, seeded(0)), x)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, g: dihedral(x, random_dihedral(g, len(x))),
        lambda x, g: stain_jitter(x, 0.2, g),
        lambda x, g: random_crop(x, 8, (0.4, 1.0), g),
        lambda x, g: blur(x, 0.5, g),
    ],
    ids=["dihedral", "stain_jitter", "random_crop", "blur"],
)
def test_the_generator_decides_everything(draw: Callable[[Tensor, Generator], Tensor]) -> None:
    x = torch.cat([image(s, 12) for s in range(16)])
    torch.manual_seed(1)
    first = draw(x, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(first, draw(x, seeded(5)))
    assert not torch.equal(first, draw(x, seeded(6)))


def test_an_augmentation_without_jitter_and_zoom_is_a_symmetry_of_the_image_or_blurred() -> None:
    x = image(3, side=8).repeat(64, 1, 1, 1)
    views = TissueAugment(0.0)(x, seeded(1))
    symmetries = torch.cat([turned(x[:1], e) for e in range(8)])
    every = torch.cat([symmetries, blur(symmetries, 1.0, seeded(0))])
    nearest = [(every - v).abs().amax((1, 2, 3)).min() for v in views]
    assert max(nearest) < 1e-2
    assert len(torch.unique((views * 1e3).round(), dim=0)) > 8


def test_an_augmentation_enlarges_and_stains_within_its_strengths_and_follows_its_generator() -> None:
    x = image(4, side=16).repeat(8, 1, 1, 1)
    a, b, c = (TissueAugment(0.4, enlargement(1.2))(x, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == x.shape
    assert a.min() >= 0
    assert a.max() <= 1
    assert not torch.equal(a, TissueAugment(0.4)(x, seeded(1)))
