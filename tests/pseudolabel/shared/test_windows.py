"""Windows of tissue: which are drawn with which labels, and which keep their label in training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.textures import tiled_pictures, tissue

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid, read_crops
from wsipipe.pseudolabel.registry import load_method, method_names
from wsipipe.pseudolabel.shared import windows as module
from wsipipe.pseudolabel.shared.windows import (
    WindowParams,
    Windows,
    draw_windows,
    prevalent_labels,
    read_tissue,
    train_windows,
)
from wsipipe.store import SlideStore

GRID = InstanceGrid(8, 64, 2)
NAN = float("nan")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 160 x 96 px of tissue, glass in its right third, in patches of 64 px."""
    rgb = tissue((160, 96))
    rgb[:, 110:] = 243
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64)["slide"])


def whole(store: SlideStore, label: tuple[int, ...]) -> Bag:
    cells = GRID.cells(store, 0.5)
    return Bag(store.slide_id, store, np.ascontiguousarray(cells[:, ::-1] * 8), label, False, store.grid.frame)


def patch(store: SlideStore, x: int, label: tuple[int, ...]) -> Bag:
    xy = np.array([(x + k % 8 * 8, k // 8 * 8) for k in range(64)], np.int32)
    return Bag(f"p{x}", store, xy, label, True, Window(x, 0, 64, 64))


def test_no_window_of_a_slide_shows_the_white_beyond_its_edge(slide: SlideStore):
    whites = (read_crops(slide, np.array([[-64, -64]], np.int32), GRID) == 255).all()
    windows = draw_windows([whole(slide, (1,)), patch(slide, 64, (0,))], GRID, 200, 1000, 0)
    assert whites
    assert (windows.rgb == 255).all(1).mean() < 1e-3, "neither tissue nor glass of the slide is white"


def test_the_window_of_a_patch_is_the_patch_and_a_slide_gives_many(slide: SlideStore):
    bags = [patch(slide, 64, (1, 0)), whole(slide, (0, 1)), patch(slide, 0, (0, 0))]
    windows = draw_windows(bags, GRID, 5, 100, 0)
    assert windows.rgb.shape == (7, 3, 32, 32)
    assert windows.labels.tolist() == [[1, 0], *[[0, 1]] * 5, [0, 0]]
    assert windows.bag.tolist() == [0, 1, 1, 1, 1, 1, 2]
    assert windows.patch.tolist() == [True, *[False] * 5, True]
    rgb = slide.read(Window(64, 0, 64, 64)).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
    np.testing.assert_allclose(windows.rgb[0].transpose(1, 2, 0), rgb, atol=0.5)
    np.testing.assert_array_equal(windows.rgb, draw_windows(bags, GRID, 5, 100, 0).rgb)
    assert not np.array_equal(windows.rgb, draw_windows(bags, GRID, 5, 100, 1).rgb)


def test_of_too_many_windows_some_of_every_kind_stay(slide: SlideStore):
    bags = [whole(slide, (1,)), whole(slide, (0,))]
    windows = draw_windows(bags, GRID, 40, 30, 0)
    assert len(windows.rgb) == len(windows.labels) == len(windows.bag) == 30
    assert 5 < windows.labels.sum() < 25


WITH_WINDOWS = [n for n in method_names() if issubclass(load_method(n).Params, WindowParams)]


def test_the_methods_of_class_maps_share_their_parameters():
    assert {"cam", "drs", "histosegnet", "irnet"} <= set(WITH_WINDOWS)


@pytest.mark.parametrize("method", WITH_WINDOWS)
@pytest.mark.parametrize(
    ("field", "values"),
    [
        *((name, [0]) for name in ("map_size", "shrink", "windows", "steps")),
        *((name, [1]) for name in ("batch", "max_windows")),
        ("lr", [0.0, NAN]),
        ("min_tissue", [0.0, 1.1, NAN]),
        *((name, [-0.1, 1.1, NAN]) for name in ("prevalence", "stain_jitter")),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(method: str, field: str, values: list[float]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"{method}\.{field}: {value}"):
            load_method(method).Params(**{field: value})


def test_the_tissue_of_a_window_is_that_of_the_pixels_that_it_shows(slide: SlideStore):
    xy = np.array([(0, 0), (96, 32), (56, 40), (152, 88)], np.int32)
    truth = slide.labels("tissue").read(Window(-64, -64, 288, 224)) == 1
    got = read_tissue(slide, xy, GRID)
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


def test_of_a_positive_slide_only_the_highest_windows_keep_their_label():
    labels = [[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 2 + [[1.0, 1.0]]
    windows = windows_of(labels, [0, 0, 0, 0, 0, 1, 1, 2], [False] * 7 + [True])
    logits = torch.tensor([[0.1, 9], [0.5, 9], [0.3, 9], [0.2, 9], [0.4, 9], [9, 0.1], [9, 0.2], [-9, -9]])
    got = prevalent_labels(windows, logits, 0.6)  # ceil(0.6 * 5) - 1 = 2 windows, and at least 1
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
    monkeypatch.setattr(module, "apply_in_batches", lambda model, crops, device: torch.arange(6.0).view(6, 1))
    windows = windows_of([[1.0]] * 4 + [[0.0]] * 2, [0] * 4 + [1] * 2, [False] * 6)
    params = load_method("cam").Params(steps=10, prevalence=prevalence)
    train_windows(torch.nn.Identity(), windows, params, SimpleNamespace(device="cpu"))
    assert calls == expected, "one of four positives keeps its label"
