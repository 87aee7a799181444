"""Windows of tissue: which are drawn with which labels, what is believed of them, and how their maps meet."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.textures import tiled_pictures, tissue

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.registry import load, names
from wsipipe.pseudolabel.shared import windows as module
from wsipipe.pseudolabel.shared.windows import (
    WindowParams,
    Windows,
    WindowTraining,
    draw_windows,
    hat,
    likeliest,
    read_tissue,
    slide_maps,
    train_windows,
    window_corners,
)
from wsipipe.store import SlideStore

LATTICE = InstanceGrid(8, 64, 2)
NAN = float("nan")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 160 x 96 px of tissue, glass in its right third, in patches of 64 px."""
    rgb = tissue((160, 96))
    rgb[:, 110:] = 243
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64)["slide"])


def whole(store: SlideStore, label: tuple[int, ...]) -> Bag:
    cells = LATTICE.cells(store, 0.5)
    return Bag(store.slide_id, store, np.ascontiguousarray(cells[:, ::-1] * 8), label, False, store.grid.frame)


def patch(store: SlideStore, x: int, label: tuple[int, ...]) -> Bag:
    xy = np.array([(x + k % 8 * 8, k // 8 * 8) for k in range(64)], np.int32)
    return Bag(f"p{x}", store, xy, label, True, Window(x, 0, 64, 64))


def test_no_window_of_a_slide_shows_the_white_beyond_its_edge(slide: SlideStore):
    whites = (read_crops(slide, np.array([[-64, -64]], np.int32), LATTICE) == 255).all()
    windows = draw_windows([whole(slide, (1,)), patch(slide, 64, (0,))], LATTICE, 200, 1000, 0)
    assert whites
    assert (windows.rgb == 255).all(1).mean() < 1e-3, "neither tissue nor glass of the slide is white"


def test_the_window_of_a_patch_is_the_patch_and_a_slide_gives_many(slide: SlideStore):
    bags = [patch(slide, 64, (1, 0)), whole(slide, (0, 1)), patch(slide, 0, (0, 0))]
    windows = draw_windows(bags, LATTICE, 5, 100, 0)
    assert windows.rgb.shape == (7, 3, 32, 32)
    assert windows.labels.tolist() == [[1, 0], *[[0, 1]] * 5, [0, 0]]
    assert windows.bag.tolist() == [0, 1, 1, 1, 1, 1, 2]
    assert windows.patch.tolist() == [True, *[False] * 5, True]
    rgb = slide.read(Window(64, 0, 64, 64)).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
    np.testing.assert_allclose(windows.rgb[0].transpose(1, 2, 0), rgb, atol=0.5)
    np.testing.assert_array_equal(windows.rgb, draw_windows(bags, LATTICE, 5, 100, 0).rgb)
    assert not np.array_equal(windows.rgb, draw_windows(bags, LATTICE, 5, 100, 1).rgb)


def test_of_too_many_windows_some_of_every_kind_stay(slide: SlideStore):
    bags = [whole(slide, (1,)), whole(slide, (0,))]
    windows = draw_windows(bags, LATTICE, 40, 30, 0)
    assert len(windows.rgb) == len(windows.labels) == len(windows.bag) == 30
    assert 5 < windows.labels.sum() < 25


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 10_000))
def test_windows_cover_every_known_cell_stay_inside_and_hold_a_known_cell_each(
    rows: int, cols: int, side: int, seed: int
):
    known = np.random.default_rng(seed).random((rows, cols)) < 0.3
    covered = np.zeros_like(known)
    corners = window_corners(known, side)
    for r, c in corners.tolist():
        assert 0 <= r <= max(0, rows - side)
        assert 0 <= c <= max(0, cols - side)
        assert known[r : r + side, c : c + side].any()
        covered[r : r + side, c : c + side] = True
    assert (covered | ~known).all()
    assert len({tuple(c) for c in corners.tolist()}) == len(corners)


WITH_WINDOWS = [n for n in names() if issubclass(load(n).Params, WindowParams)]


def test_the_methods_of_class_maps_share_their_parameters():
    assert {"cam", "drs", "histosegnet", "irnet"} <= set(WITH_WINDOWS)


@pytest.mark.parametrize("method", WITH_WINDOWS)
@pytest.mark.parametrize(
    ("field", "values"),
    [
        *((name, [0]) for name in ("cells", "shrink", "windows", "steps")),
        *((name, [1]) for name in ("batch", "max_windows")),
        ("lr", [0.0, NAN]),
        ("min_tissue", [0.0, 1.1, NAN]),
        *((name, [-0.1, 1.1, NAN]) for name in ("prevalence", "stain_jitter")),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(method: str, field: str, values: list[float]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"{method}\.{field}: {value}"):
            load(method).Params(**{field: value})


def test_the_tissue_of_a_window_is_that_of_the_pixels_that_it_shows(slide: SlideStore):
    xy = np.array([(0, 0), (96, 32), (56, 40), (152, 88)], np.int32)
    truth = slide.labels("tissue").read(Window(-64, -64, 288, 224)) == 1
    got = read_tissue(slide, xy, LATTICE)
    assert got.any()
    assert not got.all()
    for (x, y), tissue_px in zip(xy.tolist(), got, strict=True):
        seen = truth[64 + y - 28 : 64 + y + 36, 64 + x - 28 : 64 + x + 36]
        for i, j in np.ndindex(32, 32):
            assert tissue_px[i, j] == (seen[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() >= 0.5)


def windows_of(labels: list[list[float]], bag: list[int], patch: list[bool]) -> Windows:
    n = len(bag)
    pixels = np.zeros((n, 3, 8, 8), np.uint8)
    return Windows(pixels, np.ones((n, 8, 8), bool), torch.tensor(labels), np.array(bag), np.array(patch))


def test_of_a_positive_slide_only_the_best_share_of_the_windows_is_believed():
    labels = [[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 2 + [[1.0, 1.0]]
    windows = windows_of(labels, [0, 0, 0, 0, 0, 1, 1, 2], [False] * 7 + [True])
    logits = torch.tensor([[0.1, 9], [0.5, 9], [0.3, 9], [0.2, 9], [0.4, 9], [9, 0.1], [9, 0.2], [-9, -9]])
    got = likeliest(windows, logits, 0.6)  # the rule trusts ceil(0.6 * 5) - 1 = 2, and at least 1
    expected = [[NAN, 0], [1, 0], [NAN, 0], [NAN, 0], [1, 0], [0, NAN], [0, 1], [1, 1]]
    torch.testing.assert_close(got, torch.tensor(expected), equal_nan=True)
    assert not windows.labels.isnan().any(), "the labels themselves stay"


@pytest.mark.parametrize(("prevalence", "expected"), [(0.0, [(10, 6)]), (0.5, [(5, 6), (5, 3)])])
def test_the_windows_are_sifted_after_half_of_the_steps(
    monkeypatch: pytest.MonkeyPatch, prevalence: float, expected: list[tuple[int, int]]
):
    calls = []

    def learn(model: object, crops: object, labels: torch.Tensor, schedule: object, *rest: object) -> None:
        calls.append((schedule.steps, int((~labels.isnan()).sum())))

    monkeypatch.setattr(module, "train_classifier", learn)
    monkeypatch.setattr(module, "apply_in_batches", lambda model, crops, on: torch.arange(6.0).view(6, 1))
    windows = windows_of([[1.0]] * 4 + [[0.0]] * 2, [0] * 4 + [1] * 2, [False] * 6)
    how = WindowTraining(10, 1e-3, prevalence=prevalence)
    train_windows(torch.nn.Identity(), windows, how, SimpleNamespace(device="cpu"))
    assert calls == expected, "one of four positives is trusted"


@pytest.mark.parametrize("side", [2, 8, 16])
def test_windows_that_overlap_by_half_weigh_the_same_together_everywhere(side: int):
    total = np.zeros((4 * side, 4 * side))
    for r, c in itertools.product(range(0, 3 * side + 1, side // 2), repeat=2):
        total[r : r + side, c : c + side] += hat(side)
    inner = total[side // 2 : -side // 2, side // 2 : -side // 2]
    np.testing.assert_array_equal(inner, (side // 2 + 1) ** 2)
    assert hat(side).min() == 1
    assert hat(3).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_map_of_a_slide_is_the_weighted_mean_of_the_maps_of_its_windows_written_out(
    slide: SlideStore, channels: int
):
    def maps_of(rgb: torch.Tensor, tissue: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(rgb.float() / 255 * tissue[:, None], 8)[:, :channels]

    got = slide_maps(slide, LATTICE, 0.5, channels, maps_of)
    known = {tuple(c) for c in LATTICE.cells(slide, 0.5).tolist()}
    values: dict[tuple[int, int], list[np.ndarray]] = {}
    weights: dict[tuple[int, int], list[int]] = {}
    fading = [1, 2, 3, 4, 4, 3, 2, 1]
    for top, left in itertools.product((0, 32), (0, 32, 64, 96)):
        xy = np.array([(left + 28, top + 28)], np.int32)
        maps = maps_of(*(torch.from_numpy(f(slide, xy, LATTICE)) for f in (read_crops, read_tissue)))
        large = F.interpolate(maps, size=(8, 8), mode="bilinear")[0].numpy()
        for i, j in np.ndindex(8, 8):
            values.setdefault((top // 8 + i, left // 8 + j), []).append(large[:, i, j])
            weights.setdefault((top // 8 + i, left // 8 + j), []).append(fading[i] * fading[j])
    assert got.shape == (channels, 12, 20)
    for r, c in np.ndindex(12, 20):
        if (r, c) in known:
            np.testing.assert_allclose(got[:, r, c], np.average(values[r, c], 0, weights[r, c]), rtol=1e-5)
        else:
            assert np.isnan(got[:, r, c]).all()
    assert 0 < len(known) < 240


def test_neither_the_order_of_windows_nor_how_many_go_together_changes_the_map_of_a_slide(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    together = []

    def maps_of(rgb: torch.Tensor, tissue: torch.Tensor) -> torch.Tensor:
        together.append(len(rgb))
        return F.avg_pool2d(rgb.float() / 255, 8)

    at_once = slide_maps(slide, LATTICE, 0.5, 3, maps_of)
    (count,) = together
    monkeypatch.setattr(module, "TOGETHER", 3)
    in_threes = slide_maps(slide, LATTICE, 0.5, 3, maps_of)
    assert together[1:] == [3] * (count // 3) + [count % 3] * (count % 3 > 0)
    monkeypatch.setattr(module, "window_corners", lambda known, side: window_corners(known, side)[::-1])
    backwards = slide_maps(slide, LATTICE, 0.5, 3, maps_of)
    assert len(together) > 4, "neither is one call"
    np.testing.assert_allclose(in_threes, at_once, rtol=1e-6)
    np.testing.assert_allclose(backwards, at_once, rtol=1e-5)


def test_maps_that_are_all_alike_are_the_map_of_the_slide_however_windows_overlap(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    alike = torch.tensor([0.25, -3.0]).view(1, 2, 1, 1)
    monkeypatch.setattr(module, "TOGETHER", 3)
    got = slide_maps(slide, LATTICE, 0.5, 2, lambda rgb, tissue: alike.expand(len(rgb), 2, 4, 4))
    known = np.zeros((12, 20), bool)
    known[tuple(LATTICE.cells(slide, 0.5).T)] = True
    np.testing.assert_allclose(got[:, known].T, np.broadcast_to([0.25, -3.0], (known.sum(), 2)), rtol=1e-6)
    assert np.isnan(got[:, ~known]).all()
