"""The rules of HistoSegNet: published values, what exempts, the other map, and who is left after the subtraction."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from support.textures import TILE_PX, textured_tile, tiled_pictures, tissue
from torch import Tensor

from wsipipe.geometry import Window
from wsipipe.pseudolabel.methods.histosegnet.background import (
    brightness_background,
    glass_centre,
    other_map,
    subtracted,
    tissue_background,
    without_exempt,
)
from wsipipe.pseudolabel.shared.blur import blurred
from wsipipe.store import SlideStore

grids = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=3), elements=st.floats(0, 1)
)


def maps_of(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)[None]


def column(*values: float) -> Tensor:
    """The channels of one place."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("grey", "value"), [(0, 0), (238, 0.00025), (239, 0.0135), (240, 0.375), (241, 0.7365), (242, 0.7497), (255, 0.75)]
)
def test_an_even_image_has_the_published_background_everywhere(grey: int, value: float):
    rgb = torch.full((1, 3, 9, 12), grey, dtype=torch.uint8)
    for sigma in (0.0, 2.0):
        torch.testing.assert_close(
            brightness_background(rgb, 240, sigma), torch.full((1, 9, 12), float(value)), rtol=0, atol=1e-4
        )


def test_brightness_is_the_mean_of_the_colours_and_the_centre_moves_the_threshold():
    rgb = torch.tensor([246.0, 240, 234]).view(1, 3, 1, 1)
    assert float(brightness_background(rgb, 240, 0)) == pytest.approx(0.375)
    assert float(brightness_background(rgb, 236, 0)) > 0.74
    assert float(brightness_background(rgb, 244, 0)) < 1e-6


def test_the_mask_gives_the_same_background_as_brightness_that_agrees_with_it():
    mask = torch.from_numpy(np.random.default_rng(0).random((2, 20, 30)) < 0.5)
    rgb = torch.where(mask, 100, 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(tissue_background(mask, 1.5), brightness_background(rgb, 240, 1.5))


@pytest.mark.parametrize("sigma", [0.4, 2.0, 3.7])
def test_the_blur_is_that_of_a_gaussian_over_four_sigma(sigma: float):
    image = np.random.default_rng(0).random((2, 40, 31))
    expected = np.stack([ndimage.gaussian_filter(i, sigma, mode="nearest", truncate=4) for i in image])
    np.testing.assert_allclose(blurred(torch.from_numpy(image), sigma).numpy(), expected, atol=1e-12)


@given(grids, st.floats(0, 1))
def test_a_background_is_a_share_and_falls_with_every_exempt_map(values: np.ndarray, more: float):
    maps = maps_of(values)
    background = torch.full((1, *values.shape[1:]), 0.75, dtype=torch.float64)
    exempt = list(range(1, values.shape[0]))
    before = without_exempt(background, maps, exempt)
    assert before.min() >= 0
    assert before.max() <= 0.75
    for c in exempt:
        higher = maps.clone()
        higher[:, c] += more
        assert (without_exempt(background, higher, exempt) <= before).all()
    lower = maps.clone()
    lower[:, 0] += more
    torch.testing.assert_close(without_exempt(background, lower, exempt), before)


def test_what_is_exempt_is_subtracted_from_the_background_by_the_highest():
    maps = column(0.1, 0.5, 0.9)
    background = torch.full((1, 1, 1), 0.75, dtype=torch.float64)
    assert float(without_exempt(background, maps, [0, 1])) == pytest.approx(0.25)
    assert float(without_exempt(background, maps, [2])) == 0
    assert float(without_exempt(background, maps, [])) == 0.75


def test_the_other_map_is_a_twentieth_where_nothing_is_seen_and_fat_counts_as_other():
    assert float(other_map(column(0, 0), 0.05)) == pytest.approx(0.05)
    assert float(other_map(column(0, 1), 0.05)) == 0
    assert float(other_map(column(0.2, 0.6), 0.05)) == pytest.approx(0.02)
    assert float(other_map(column(0.2, 0.6), 0.05, column(0.0, 0.3))) == pytest.approx(0.3)
    assert float(other_map(column(0.2, 0.6), 0.05, column())) == pytest.approx(0.02)


@given(grids)
def test_the_other_map_is_never_negative(values: np.ndarray):
    other = other_map(maps_of(values), 0.05)
    assert other.min() >= 0
    assert other.max() <= 0.05


def slow_subtraction(maps: np.ndarray, kept: tuple[int, ...] = ()) -> np.ndarray:
    out = maps.copy()
    for c, y, x in itertools.product(*(range(n) for n in maps.shape)):
        rivals = [maps[d, y, x] for d in range(len(maps)) if d != c]
        if c not in kept and rivals:
            out[c, y, x] = max(maps[c, y, x] - max(rivals), 0)
    return out


@given(grids, st.sampled_from([(), (1,), (0, 1)]))
def test_the_subtraction_is_its_formula_written_out(values: np.ndarray, kept: tuple[int, ...]):
    np.testing.assert_allclose(subtracted(maps_of(values), kept)[0].numpy(), slow_subtraction(values, kept), atol=1e-12)


@given(grids, st.floats(0, 1), st.randoms())
def test_one_class_keeps_its_margin_whatever_their_order_and_level(values: np.ndarray, level: float, random):
    maps = maps_of(values)
    out = subtracted(maps)
    top = np.sort(values, 0)
    np.testing.assert_allclose(out.sum(1)[0].numpy(), top[-1] - top[-2], atol=1e-12)
    assert ((out > 0).sum(1) <= 1).all()
    clear = torch.from_numpy(top[-1] - top[-2] > 1e-9)[None]
    assert torch.equal(out.argmax(1)[clear], maps.argmax(1)[clear])
    order = list(range(len(values)))
    random.shuffle(order)
    torch.testing.assert_close(subtracted(maps[:, order]), out[:, order])
    torch.testing.assert_close(subtracted(maps + level), out, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "legacy"),
    [((0.9, 0.6, 0.5), (0.3, 0, 0), (0.3, 0.1, 0.2)), ((0.5, 0.6, 0.9), (0, 0, 0.3), (0, 0, 1.0))],
)
def test_the_released_subtraction_depends_on_the_order_of_the_classes_and_can_be_had(
    before: tuple[float, ...], after: tuple[float, ...], legacy: tuple[float, ...]
):
    torch.testing.assert_close(subtracted(column(*before)), column(*after))
    torch.testing.assert_close(subtracted(column(*before), legacy_inplace=True), column(*legacy))


def test_a_kept_channel_takes_part_as_a_rival_alone():
    for legacy in (False, True):
        out = subtracted(column(0.9, 0.6), (1,), legacy)
        torch.testing.assert_close(out, column(0.3, 0.6))
    assert subtracted(column(0.7)).item() == 0.7


def test_a_subtraction_leaves_what_it_is_given():
    for legacy in (False, True):
        maps = column(0.9, 0.6, 0.5)
        subtracted(maps, legacy_inplace=legacy)
        torch.testing.assert_close(maps, column(0.9, 0.6, 0.5))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SlideStore]:
    """`slides(name)`: grey glass of 231, a third of it dirty; white glass; and a slide of nothing but tissue."""
    rng = np.random.default_rng(0)
    pictures = {"all": tissue((256, 256))}
    for name, grey in (("grey", 231.0), ("white", 255.0)):
        rgb = np.full((256, 1200, 3), grey) + rng.normal(0, 1 if name == "grey" else 0, (256, 1200, 1))
        rgb[:128, 600:] -= 6 if name == "grey" else 0
        rgb[:, :300] = tissue((300, 256))
        pictures[name] = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    stores = tiled_pictures(tmp_path_factory.mktemp("glass"), pictures, patch_px=128)
    return lambda name: SlideStore(stores[name])


def test_the_threshold_lies_below_the_glass_of_the_slide(slides: Callable[[str], SlideStore]):
    assert glass_centre(slides("grey")) == pytest.approx(226, abs=1)
    assert glass_centre(slides("white")) == pytest.approx(250, abs=1)


def test_a_slide_without_glass_has_the_published_threshold(slides: Callable[[str], SlideStore]):
    assert glass_centre(slides("all")) == 240


def test_on_a_small_slide_what_is_not_stored_is_not_taken_for_its_glass(tmp_path: Path):
    rgb = np.full((900, 900, 3), 230, np.uint8)
    rgb[:128, :128] = tissue((128, 128))
    store = SlideStore(tiled_pictures(tmp_path, {"s": rgb}, patch_px=64)["s"])
    assert store.grid.levels == 1
    assert glass_centre(store) == 225


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_one_class_is_painted_from_its_part_of_a_maximum_on(share: float):
    """2u / (1 + 2u) of 1: the margin over other must exceed other."""
    border = 2 * share / (1 + 2 * share)
    for g, painted in ((border - 0.01, False), (border + 0.01, True)):
        other = other_map(column(0, g), share)
        left = subtracted(torch.cat([column(0), other[:, None], column(g)], 1), (1,))
        assert bool(left[0, 2] > left[0, :2].max()) == painted


@pytest.mark.parametrize("background", ["tissue", "brightness"])
def test_glass_is_found_in_tiles_of_textures(tmp_path: Path, background: str):
    tiles = [textured_tile(t, planted=t % 2 == 0) for t in range(2)]
    rgb, truth = (np.concatenate([getattr(t, k) for t in tiles], 1) for k in ("rgb", "truth"))
    store = SlideStore(tiled_pictures(tmp_path, {"s": rgb}, patch_px=TILE_PX, min_tissue=0.05)["s"])
    whole = Window(0, 0, 2 * TILE_PX, TILE_PX)
    if background == "tissue":
        found = tissue_background(torch.from_numpy(store.labels("tissue").read(whole) == 1)[None], 2.4)
    else:
        x = torch.from_numpy(store.read(whole).transpose(2, 0, 1)[None].copy())
        found = brightness_background(x, glass_centre(store), 2.4)
    glass = (found[0] > 0.375).numpy()
    assert (glass & (truth == 0)).sum() / (glass | (truth == 0)).sum() > 0.95
