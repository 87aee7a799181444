"""Tissue detection: glass, pen, black and blur are excluded; a slide without tissue has a note that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from support.examples import examples
from support.types import Drawing, DrawTissue

from wsipipe.errors import ConfigError
from wsipipe.geometry import Grid, Window
from wsipipe.slides import open_slide
from wsipipe.slides.resample import SlideView
from wsipipe.tissue import detect as module
from wsipipe.tissue.detect import TissueMask, TissueRules
from wsipipe.tissue.overview import OverviewKind

GLASS, TISSUE, PEN, BLUR, BLACK = OverviewKind


@pytest.fixture(scope="module")
def blob(tissue_drawer: DrawTissue) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Tissue on glass, 1600 x 1300 px, and its mask; not to be written to."""
    return tissue_drawer((1600, 1300))


def working(slide: Any, mpp: float = 0.5) -> Grid:
    return Grid.plan(slide.info.size_px0, slide.info.mpp0, slide.downsamples, mpp, (128, 128))


def find_tissue(slide: Any, grid: Grid, mpp: float = 8.0, min_area_um2: float = 10_000, qc: bool = True) -> TissueMask:
    return module.find_tissue(SlideView(slide, grid).read, grid, TissueRules(mpp, min_area_um2, qc))


def agreement(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    return float((found & expected).sum() / (found | expected).sum())


def at_working_px(tissue: TissueMask, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The kind of each working pixel."""
    return tissue.kind.repeat(tissue.step_px, 0).repeat(tissue.step_px, 1)[: shape[0], : shape[1]]


@pytest.mark.parametrize(("mpp", "tissue_mpp"), [(0.5, 4.0), (0.5, 8.0), (0.8, 4.0), (2.0, 4.0)])
def test_the_blob_is_found(array_slide: Any, tissue_drawer: DrawTissue, mpp: float, tissue_mpp: float) -> None:
    rgb, truth = tissue_drawer((1600, 1300), seed=1)
    slide = array_slide(rgb, (1, 4))
    grid = working(slide, mpp)
    tissue = find_tissue(slide, grid, tissue_mpp, 10_000)
    width, height = grid.size_px
    found = at_working_px(tissue, (height, width)) == TISSUE
    y, x = (
        np.minimum(((np.arange(n) + 0.5) * s).astype(int), m - 1)
        for n, s, m in zip((height, width), grid.scale, truth.shape, strict=True)
    )
    expected = truth[np.ix_(y, x)]
    assert tissue.note == ""
    assert (found & expected).sum() / (found | expected).sum() > 0.9


def test_the_blob_is_found_in_a_file(svs_path: Path, tissue_rgb: Drawing) -> None:
    slide = open_slide(svs_path, "blob")
    found = at_working_px(find_tissue(slide, working(slide), 8.0, 10_000), (900, 1200)) == TISSUE
    assert (found & tissue_rgb[1]).sum() / (found | tissue_rgb[1]).sum() > 0.9


@pytest.mark.parametrize("grey", [255, 243, 235, 222])
def test_a_blank_slide_is_empty_with_a_note(array_slide: Any, grey: int) -> None:
    rgb = np.clip(np.random.default_rng(0).normal(grey, 1.2, (700, 800, 3)), 0, 255).astype(np.uint8)
    slide = array_slide(rgb, (1, 4))
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert not tissue.mask.any()
    assert tissue.note.startswith(("nothing darker than glass", "no piece of tissue of at least"))


@pytest.mark.parametrize("tint", [(255, 255, 255), (235, 235, 235), (224, 226, 230)])
def test_the_tint_of_the_glass_does_not_matter(
    array_slide: Any, tissue_drawer: DrawTissue, tint: tuple[int, int, int]
) -> None:
    rgb, truth = tissue_drawer((1200, 1000))
    slide = array_slide(np.where(truth[..., None], rgb, np.array(tint, np.uint8)))
    found = at_working_px(find_tissue(slide, working(slide), 4.0, 10_000), (1000, 1200)) == TISSUE
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_a_dark_slide_is_not_bright_field(array_slide: Any) -> None:
    rgb = np.zeros((600, 600, 3), np.uint8)
    rgb[200:300, 200:300, 2] = 250
    slide = array_slide(rgb)
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert not tissue.mask.any()
    assert tissue.note == "dark background: not a bright-field slide"


def test_a_black_frame_is_not_tissue(array_slide: Any, tissue_drawer: DrawTissue) -> None:
    rgb, truth = tissue_drawer((1200, 1000))
    rgb = rgb.copy()
    rgb[:60], rgb[:, -60:] = 0, 0
    slide = array_slide(rgb)
    found = at_working_px(find_tissue(slide, working(slide), 4.0, 10_000), (1000, 1200)) == TISSUE
    assert not found[:40].any()
    assert not found[:, -40:].any()
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_small_pieces_and_small_holes_are_ignored(array_slide: Any) -> None:
    rgb = np.full((800, 800, 3), 250, np.uint8)
    rgb[160:640, 160:640] = (200, 120, 170)
    rgb[360:400, 360:400] = 250
    rgb[40:64, 40:64] = (200, 120, 170)
    slide = array_slide(rgb)
    mask = find_tissue(slide, working(slide), 4.0, 60 * 16).mask
    assert mask[30:70, 30:70].all()
    assert not mask[:15, :15].any()
    fine = find_tissue(slide, working(slide), 4.0, 2 * 16).mask
    assert fine[6, 6]
    assert not fine[47, 47]


def test_a_slide_of_one_overview_pixel_may_be_tissue(array_slide: Any) -> None:
    slide = array_slide(np.full((16, 16, 3), (200, 120, 170), np.uint8))
    assert find_tissue(slide, working(slide), 8.0, 0).mask.tolist() == [[True]]


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 40)])
def test_a_tiny_slide_is_empty_with_a_note(array_slide: Any, size: tuple[int, int]) -> None:
    slide = array_slide(np.full((size[1], size[0], 3), (200, 120, 170), np.uint8))
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert tissue.mask.shape == (-(-size[1] // 16), -(-size[0] // 16))
    assert not tissue.mask.any()
    assert tissue.note


@examples(40)
@given(
    st.integers(1, 9),
    st.integers(1, 30),
    st.tuples(st.integers(-20, 80), st.integers(-20, 80)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 99),
)
def test_fractions_agree_with_counting_pixels(
    step: int, n: int, at: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    mask = np.random.default_rng(seed).random((n, n + 2)) < 0.5
    fine = mask.repeat(step, 0).repeat(step, 1)
    y, x = at
    part = fine[max(y, 0) : max(y + size[0], 0), max(x, 0) : max(x + size[1], 0)]
    expected = part.sum() / (size[0] * size[1])
    tissue = TissueMask(mask.astype(np.uint8), step)
    many = tissue.fractions(np.array([[y, x], [y, x]]), size)
    assert many.dtype == np.float32
    assert many.tolist() == pytest.approx([expected] * 2, abs=1e-5)


def test_fractions_of_no_windows_are_an_empty_array() -> None:
    assert TissueMask(np.ones((3, 3), np.uint8), 4).fractions(np.zeros((0, 2), np.int64), (8, 8)).shape == (0,)


def test_shares_are_relative_to_what_is_neither_glass_nor_black() -> None:
    kind = np.array(
        [
            [GLASS, GLASS, BLACK],
            [TISSUE, PEN, PEN],
            [TISSUE, BLUR, GLASS],
        ],
        np.uint8,
    )
    assert TissueMask(kind, 4).shares() == {"pen": 2 / 5, "blur": 1 / 5}
    assert TissueMask(np.zeros((2, 2), np.uint8), 4).shares() == {"pen": 0, "blur": 0}


@pytest.mark.parametrize("rules", [(0.0, 1.0), (-8.0, 1.0), (float("nan"), 1.0), (8.0, -1.0)])
def test_implausible_rules_are_refused(rules: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"expected .*, e\.g\."):
        TissueRules(*rules)


def blurred(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Out of focus by a Gaussian of 20 px, which is 10 um."""
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(20)))


INKS = [(30, 60, 160), (0, 0, 200), (25, 35, 110), (20, 120, 60), (0, 128, 0), (0, 120, 130), (45, 45, 48), (255, 0, 0)]


def stroke(shape: tuple[int, int], half_px: int = 60) -> NDArray[np.bool_]:
    """A wave over tissue and glass."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.abs(y - shape[0] * (0.5 + 0.3 * np.sin(x / 200))) < half_px


@pytest.mark.parametrize("ink", INKS)
def test_pen_is_found_over_tissue_and_over_glass(
    array_slide: Any, blob: tuple[NDArray[np.uint8], NDArray[np.bool_]], ink: tuple[int, int, int]
) -> None:
    rgb, truth = blob
    pen = stroke(truth.shape)
    rgb = np.where(pen[..., None], np.array(ink, np.uint8), rgb)
    slide = array_slide(rgb)
    found = at_working_px(find_tissue(slide, working(slide)), truth.shape)
    inner, clear = stroke(truth.shape, 30), ~stroke(truth.shape, 140)
    assert (found[inner] == PEN).mean() > 0.95
    assert not (found[clear] == PEN).any()
    assert agreement(found[clear] == TISSUE, truth[clear]) > 0.85


def test_without_qc_pen_and_blur_are_kept(array_slide: Any, blob: tuple[NDArray[np.uint8], NDArray[np.bool_]]) -> None:
    rgb, truth = blob
    pen = stroke(truth.shape)
    slide = array_slide(np.where(pen[..., None], np.array(INKS[0], np.uint8), blurred(rgb)))
    kinds = set(np.unique(find_tissue(slide, working(slide), qc=False).kind))
    assert kinds == {GLASS, TISSUE}


def test_small_specks_in_the_colour_of_ink_stay_tissue(
    array_slide: Any, blob: tuple[NDArray[np.uint8], NDArray[np.bool_]]
) -> None:
    rgb = blob[0].copy()
    rgb[600:640, 700:740] = INKS[3]
    slide = array_slide(rgb)
    assert not (find_tissue(slide, working(slide)).kind == PEN).any()


def test_a_slide_entirely_in_ink_colours_is_treated_as_stained(array_slide: Any, tissue_drawer: DrawTissue) -> None:
    rgb, truth = tissue_drawer((1200, 1000))
    slide = array_slide(np.where(truth[..., None], rgb[..., [1, 0, 2]] // 2, rgb))
    tissue = find_tissue(slide, working(slide))
    assert tissue.shares()["pen"] == 0
    assert "treated as a stain and kept" in tissue.note
    assert agreement(at_working_px(tissue, truth.shape) == TISSUE, truth) > 0.85


def test_much_pen_is_excluded_with_a_note(array_slide: Any, tissue_drawer: DrawTissue) -> None:
    rgb, truth = tissue_drawer((1200, 1000))
    rgb = rgb.copy()
    rgb[:, :700][truth[:, :700]] = INKS[3]
    slide = array_slide(rgb)
    tissue = find_tissue(slide, working(slide))
    assert 0.3 < tissue.shares()["pen"] < 0.8
    assert "--no-qc" in tissue.note


def test_black_borders_are_marked_black(array_slide: Any, tissue_drawer: DrawTissue) -> None:
    rgb, truth = tissue_drawer((1200, 1000))
    rgb = rgb.copy()
    rgb[:64], rgb[:, -64:] = 3, 3
    slide = array_slide(rgb)
    found = at_working_px(find_tissue(slide, working(slide)), truth.shape)
    assert (found[:64] == BLACK).all()
    assert (found[:, -64:] == BLACK).all()
    assert not (found == PEN).any()


@pytest.mark.parametrize("tissue_mpp", [4.0, 8.0])
def test_the_blurred_half_is_out_of_focus_and_the_sharp_half_is_not(
    array_slide: Any, tissue_drawer: DrawTissue, tissue_mpp: float
) -> None:
    rgb, truth = tissue_drawer((2400, 1600), seed=2)
    rgb = np.concatenate([blurred(rgb)[:, :1200], rgb[:, 1200:]], axis=1)
    slide = array_slide(rgb)
    tissue = find_tissue(slide, working(slide), tissue_mpp)
    found = at_working_px(tissue, truth.shape)
    assert (found[:, :1200][truth[:, :1200]] == BLUR).mean() > 0.8
    assert not (found[:, 1200:] == BLUR).any()
    assert 0.3 < tissue.shares()["blur"] < 0.7


def test_a_slide_entirely_out_of_focus_is_kept_with_a_note(
    array_slide: Any, blob: tuple[NDArray[np.uint8], NDArray[np.bool_]]
) -> None:
    rgb, _ = blob
    slide = array_slide(blurred(rgb))
    tissue = find_tissue(slide, working(slide))
    assert not (tissue.kind == BLUR).any()
    assert "looks out of focus" in tissue.note


@pytest.mark.parametrize(
    ("mpp", "tissue_mpp"), [(0.5, 2.0), (0.5, 4.0), (0.3, 8.0), (1.0, 8.0), (4.0, 8.0), (2.0, 24.0)]
)
def test_sharp_tissue_is_in_focus_at_every_resolution(
    array_slide: Any, blob: tuple[NDArray[np.uint8], NDArray[np.bool_]], mpp: float, tissue_mpp: float
) -> None:
    slide = array_slide(blob[0], (1, 4))
    assert set(np.unique(find_tissue(slide, working(slide, mpp), tissue_mpp).kind)) == {
        GLASS,
        TISSUE,
    }


@examples(40)
@given(st.lists(st.integers(0, 50), min_size=256, max_size=256))
def test_the_threshold_is_half_of_otsus_over_all_splits(counts: list[int]) -> None:
    counts[0] += 1
    values = np.repeat(np.arange(256), counts)
    spread = [
        (low := values[values <= t]).size * (high := values[values > t]).size * (low.mean() - high.mean()) ** 2
        if (values <= t).any() and (values > t).any()
        else 0
        for t in range(256)
    ]
    best = np.flatnonzero(spread >= np.max(spread) * (1 - 1e-9))  # which of equal splits comes first is rounding
    expected = np.clip(best / 2, 0.06 * 255, 0.12 * 255).astype(int)
    assert module._threshold(np.array(counts)) in expected


def test_pixels_are_read_once_inside_the_slide_and_a_strip_at_a_time() -> None:
    grid = Grid((30_000, 20_000), (0.5, 0.5), (1.0, 1.0), 256, 256)
    windows = []

    def view(window: Window, factor: int) -> NDArray[np.uint8]:
        assert factor == 8
        windows.append(window)
        return np.full((window.height_px, window.width_px, 3), 240, np.uint8)

    module.find_tissue(view, grid, TissueRules())
    assert all((w.x_px, w.width_px) == (0, 3750) and w.height_px <= 256 for w in windows)
    assert [w.y_px for w in windows] == np.cumsum([0, *(w.height_px for w in windows[:-1])]).tolist()
    assert sum(w.height_px for w in windows) == 2500


def test_real_fluorescence_slide_is_empty_with_a_note(real_wsi: Path) -> None:
    slide = open_slide(real_wsi / "test3-DAPI-2-(387).ndpi", "dapi")
    tissue = find_tissue(slide, working(slide), 8.0, 10_000)
    assert not tissue.mask.any()
    assert "dark background" in tissue.note


def test_real_bright_field_slide_has_tissue(real_wsi: Path) -> None:
    slide = open_slide(real_wsi / "CMU-1-Small-Region.svs", "cmu")
    share = find_tissue(slide, working(slide), 8.0, 10_000).mask.mean()
    assert 0.2 < share < 0.95


def test_nothing_of_a_real_sharp_slide_is_pen_or_blur(real_wsi: Path) -> None:
    slide = open_slide(real_wsi / "CMU-1-Small-Region.svs", "cmu")
    shares = find_tissue(slide, working(slide)).shares()
    assert shares["pen"] < 0.005
    assert shares["blur"] < 0.01


def test_any_number_of_small_components_is_removed() -> None:
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True  # 90,000 pieces of one pixel
    mask[100:110, 200:210] = True
    module._remove_small(mask, 50)
    inside = mask[99:111, 199:211]
    assert mask.sum() == inside.sum() == 100 + 10  # the square, and the pixels of the lattice at two of its sides


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
@examples(20)
def test_windows_in_chunks_have_the_same_fractions(together: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tissue = TissueMask(np.where(rng.random((13, 17)) < 0.5, TISSUE, GLASS).astype(np.uint8), 7)
    yx_px = rng.integers(-20, 130, (30, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_WINDOWS", together)
        parts = tissue.fractions(yx_px, (20, 30))
    np.testing.assert_array_equal(parts, tissue.fractions(yx_px, (20, 30)))
