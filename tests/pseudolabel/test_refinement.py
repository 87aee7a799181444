"""Refinement of a slide: cells get smaller, every window sees the right pixels, and what is not known stays so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.textures import tiled_pictures, tissue

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.pseudolabel import refinement as module
from wsipipe.pseudolabel.method import ScoreMap
from wsipipe.pseudolabel.refinement import RefinementStep, read_cell_colours, refine_scores, upsample_scores
from wsipipe.store import SlideStore

NAN = float("nan")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """640 x 512 px of tissue whose colour says where it is."""
    rgb = tissue((640, 512))
    rgb[..., 0] = np.arange(640) // 4
    rgb[..., 1] = np.arange(512)[:, None] // 4
    return SlideStore(
        tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64, codec="zstd")["slide"]
    )


def scores(shape: tuple[int, int], stride_px: int, unknown: float = 0.2) -> ScoreMap:
    rng = np.random.default_rng(3)
    values, none = rng.random((2, *shape), np.float32), rng.random(shape, np.float32)
    gone = rng.random(shape) < unknown
    values[:, gone] = none[gone] = np.nan
    return ScoreMap(values, none, stride_px)


def step(refine: object, stride_px: int = 8) -> RefinementStep:
    return RefinementStep("test", SimpleNamespace(Params=None, refine=refine), None, stride_px)


def test_a_refinement_that_changes_nothing_gives_the_map_back(slide: SlideStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CORE", 24)
    given = scores((64, 80), 8)
    got = refine_scores(given, slide, step(lambda evidence, *rest: evidence), CPU)
    np.testing.assert_array_equal(got.values, given.values)
    np.testing.assert_array_equal(got.background, given.background)
    assert got.stride_px == 8


def test_every_window_is_given_its_own_pixels_and_the_size_of_its_cells(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CORE", 24)
    monkeypatch.setattr(module, "MARGIN", 5)
    sizes = []

    def refine(evidence: torch.Tensor, rgb: torch.Tensor, known: torch.Tensor, cell_um: float, params: object):
        assert rgb.dtype == torch.uint8
        assert cell_um == 4.0
        assert not evidence[:, ~known].any()
        sizes.append(tuple(known.shape))
        return torch.stack([rgb[0] / 255, rgb[1] / 255, known.float()])

    got = refine_scores(scores((64, 80), 8), slide, step(refine), CPU)
    known = got.known
    x, y = np.meshgrid(np.arange(80) * 2 + 0.5, np.arange(64) * 2 + 0.5)  # of red and green, which count by 4 px
    np.testing.assert_allclose(got.background[known] * 255, x[known], atol=1)
    np.testing.assert_allclose(got.values[0][known] * 255, y[known], atol=1)
    assert (got.values[1][known] == 1).all()
    assert np.isnan(got.values[:, ~known]).all()
    assert max(h for h, _ in sizes) == 24 + 10


@pytest.mark.parametrize("stride_px", [4, 8, 12, 16, 64])
def test_cells_have_the_mean_colour_of_their_pixels(slide: SlideStore, stride_px: int):
    got = read_cell_colours(slide, slice(1, 4), slice(2, 7), stride_px)
    n = stride_px
    rgb = slide.read(Window(2 * n, n, 5 * n, 3 * n)).astype(float).reshape(3, n, 5, n, 3).mean((1, 3))
    inside = np.s_[: (512 - n) // n, : (640 - 2 * n) // n]
    np.testing.assert_allclose(got[inside], rgb[inside], atol=2)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0, 1))
def test_enlarging_keeps_what_is_known_and_constants(rows: int, cols: int, factor: int, value: float):
    known = np.random.default_rng(rows * 7 + cols).random((rows, cols)) < 0.7
    none = np.where(known, np.float32(value), np.float32(NAN))
    got = upsample_scores(ScoreMap(none[None] * 0.5, none, 8 * factor), 8)
    assert got.stride_px == 8
    np.testing.assert_array_equal(got.known, known.repeat(factor, 0).repeat(factor, 1))
    np.testing.assert_allclose(got.background[got.known], value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got.values[0][got.known], value / 2, rtol=1e-5, atol=1e-7)


def test_enlarging_interpolates_between_the_centres_of_cells():
    values = np.array([[[0.0, 1.0]]], np.float32)
    got = upsample_scores(ScoreMap(values, values[0], 16), 8)
    np.testing.assert_allclose(got.values[0], [[0, 0.25, 0.75, 1]] * 2)


def test_cells_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"stride of 20 px do not divide into cells of 8 px; .*refine_stride_px"):
        upsample_scores(scores((2, 2), 20), 8)


def test_cells_finer_than_asked_for_stay_as_they_are():
    given = scores((3, 3), 4)
    assert upsample_scores(given, 8) is given
