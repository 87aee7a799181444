"""The tissue finder: tissue is found, glass is not, and a slide without tissue says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsipipe.geometry import Grid, Window
from wsipipe.slides import open_slide
from wsipipe.slides.tissue import TissueMask, find_tissue, tissue_of


def working(slide, mpp: float = 0.5) -> Grid:
    return Grid.plan(slide.info.size_px0, slide.info.mpp0, slide.downsamples, mpp, (128, 128))


@pytest.mark.parametrize(("mpp", "tissue_mpp"), [(0.5, 4.0), (0.5, 8.0), (0.8, 4.0), (2.0, 4.0)])
def test_the_blob_is_found(array_slide, tissue_drawer, mpp: float, tissue_mpp: float):
    rgb, truth = tissue_drawer((1600, 1300), seed=1)
    slide = array_slide(rgb, (1, 4))
    grid = working(slide, mpp)
    tissue = find_tissue(slide, grid, tissue_mpp, 10_000)
    width, height = grid.size_px
    found = tissue.pixels(Window(0, 0, width, height)).astype(bool)
    y, x = (
        np.minimum(((np.arange(n) + 0.5) * s).astype(int), m - 1)
        for n, s, m in zip((height, width), grid.scale, truth.shape, strict=True)
    )
    expected = truth[np.ix_(y, x)]
    assert tissue.note == ""
    assert (found & expected).sum() / (found | expected).sum() > 0.9


def test_the_blob_is_found_in_a_file(svs_path: Path, tissue_rgb):
    slide = open_slide(svs_path, "blob")
    found = find_tissue(slide, working(slide), 8.0, 10_000).pixels(Window(0, 0, 1200, 900)).astype(bool)
    assert (found & tissue_rgb[1]).sum() / (found | tissue_rgb[1]).sum() > 0.9


@pytest.mark.parametrize("grey", [255, 243, 235, 222])
def test_a_blank_slide_is_empty_and_says_so(array_slide, grey: int):
    rgb = np.clip(np.random.default_rng(0).normal(grey, 1.2, (700, 800, 3)), 0, 255).astype(np.uint8)
    slide = array_slide(rgb, (1, 4))
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert not tissue.mask.any()
    assert tissue.note.startswith(("nothing darker than glass", "no piece of tissue as large as"))


@pytest.mark.parametrize("tint", [(255, 255, 255), (235, 235, 235), (224, 226, 230)])
def test_the_tint_of_the_glass_does_not_matter(array_slide, tissue_drawer, tint: tuple[int, int, int]):
    rgb, truth = tissue_drawer((1200, 1000))
    slide = array_slide(np.where(truth[..., None], rgb, np.array(tint, np.uint8)))
    found = find_tissue(slide, working(slide), 4.0, 10_000).pixels(Window(0, 0, 1200, 1000)).astype(bool)
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_a_dark_slide_is_no_bright_field_slide(array_slide):
    rgb = np.zeros((600, 600, 3), np.uint8)
    rgb[200:300, 200:300, 2] = 250
    slide = array_slide(rgb)
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert not tissue.mask.any()
    assert tissue.note == "dark background: not a bright-field slide"


def test_a_black_frame_is_not_tissue(array_slide, tissue_drawer):
    rgb, truth = tissue_drawer((1200, 1000))
    rgb = rgb.copy()
    rgb[:60], rgb[:, -60:] = 0, 0
    slide = array_slide(rgb)
    found = find_tissue(slide, working(slide), 4.0, 10_000).pixels(Window(0, 0, 1200, 1000)).astype(bool)
    assert not found[:40].any()
    assert not found[:, -40:].any()
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_small_pieces_and_small_holes_are_ignored():
    rgb = np.full((100, 100, 3), 250, np.uint8)
    rgb[20:80, 20:80] = (200, 120, 170)
    rgb[45:50, 45:50] = 250
    rgb[5:8, 5:8] = (200, 120, 170)
    mask, note = tissue_of(rgb, min_area_px=60)
    assert note == ""
    assert mask[30:70, 30:70].all()
    assert not mask[:15, :15].any()
    fine, _ = tissue_of(rgb, min_area_px=2)
    assert fine[6, 6]
    assert not fine[47, 47]


def test_a_slide_of_one_overview_pixel_may_be_tissue(array_slide):
    slide = array_slide(np.full((16, 16, 3), (200, 120, 170), np.uint8))
    assert find_tissue(slide, working(slide), 8.0, 0).mask.tolist() == [[True]]


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 40)])
def test_a_tiny_slide_is_no_accident(array_slide, size: tuple[int, int]):
    slide = array_slide(np.full((size[1], size[0], 3), (200, 120, 170), np.uint8))
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert tissue.mask.shape == (-(-size[1] // 16), -(-size[0] // 16))
    assert not tissue.mask.any()
    assert tissue.note


@settings(max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 30),
    st.tuples(st.integers(-20, 80), st.integers(-20, 80)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 99),
)
def test_fractions_agree_with_counting_pixels(step: int, n: int, at: tuple[int, int], size: tuple[int, int], seed: int):
    mask = np.random.default_rng(seed).random((n, n + 2)) < 0.5
    fine = mask.repeat(step, 0).repeat(step, 1)
    y, x = at
    part = fine[max(y, 0) : max(y + size[0], 0), max(x, 0) : max(x + size[1], 0)]
    expected = part.sum() / (size[0] * size[1])
    tissue = TissueMask(mask, step)
    assert tissue.fraction(Window(x, y, size[1], size[0])) == pytest.approx(expected, abs=1e-5)
    many = tissue.fractions(np.array([[y, x], [y, x]]), size)
    assert many.dtype == np.float32
    assert many.tolist() == pytest.approx([expected] * 2, abs=1e-5)


def test_fractions_of_no_window_are_none():
    assert TissueMask(np.ones((3, 3), bool), 4).fractions(np.zeros((0, 2), np.int64), (8, 8)).shape == (0,)


def test_pixels_take_the_mask_pixel_that_covers_them():
    mask = np.random.default_rng(0).random((6, 7)) < 0.5
    fine = mask.repeat(4, 0).repeat(4, 1)
    found = TissueMask(mask, 4).pixels(Window(3, 5, 20, 14))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, fine[5:19, 3:23])


def test_real_fluorescence_slide_is_empty_with_a_note(real_wsi: Path):
    slide = open_slide(real_wsi / "test3-DAPI-2-(387).ndpi", "dapi")
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert not tissue.mask.any()
    assert "dark background" in tissue.note


def test_real_bright_field_slide_has_tissue(real_wsi: Path):
    slide = open_slide(real_wsi / "CMU-1-Small-Region.svs", "cmu")
    share = find_tissue(slide, working(slide), 8.0, 10_000).mask.mean()
    assert 0.2 < share < 0.95
