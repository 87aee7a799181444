"""Plain CAM: the two equations, which windows are learned and scored, the normalisation, and a texture found again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.textures import Cohort, tiled_pictures, tissue

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE
from wsipipe.nn.encoders import MEAN, STD, Statistics, create_encoder, expect, normalise
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import ScoreContext
from wsipipe.pseudolabel.methods import cam
from wsipipe.pseudolabel.methods.cam import Params
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.stage import PseudolabelOptions
from wsipipe.runtime.context import RunContext
from wsipipe.runtime.ledger import Report
from wsipipe.store import SlideStore

NAN = float("nan")
CPU = torch.device("cpu")
Quick = Callable[..., tuple[Report, list[Path]]]


class Colours(torch.nn.Module):
    """An encoder whose features are the mean colours of 16 x 16 px."""

    feature_info = ({"reduction": 4}, {"reduction": 16}, {"reduction": 32})

    def forward_intermediates(self, x: torch.Tensor, indices: list[int], **how: object) -> list[torch.Tensor]:
        assert how == {"norm": True, "stop_early": True, "intermediates_only": True, "output_fmt": "NCHW"}
        return [F.avg_pool2d(x, self.feature_info[i]["reduction"]) for i in indices]


def test_the_score_is_the_mean_of_the_map_and_both_are_the_weighted_sums_of_the_features():
    torch.manual_seed(0)
    model = CamClassifier(create_encoder("resnet18_quarter"), 64, 2).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        f, maps, logits = model.features(x), model.maps(x), model(x)
    w, b = model.linear.weight.detach(), model.linear.bias.detach()
    _, width, height, across = f.shape
    for n in range(3):
        for c in range(2):
            for y in range(height):
                for xx in range(across):
                    m = sum(float(w[c, k]) * float(f[n, k, y, xx]) for k in range(width))
                    assert float(maps[n, c, y, xx]) == pytest.approx(m, rel=1e-3, abs=1e-4)
            s = sum(float(w[c, k]) * float(f[n, k].mean()) for k in range(width)) + float(b[c])
            assert float(logits[n, c]) == pytest.approx(s, rel=1e-3, abs=1e-4)


def test_the_map_is_the_deepest_that_is_not_coarser_than_a_sixteenth():
    model = CamClassifier(create_encoder("resnet18_quarter"), 64, 1)
    assert model.features(torch.zeros(1, 3, 64, 96)).shape == (1, 64, 4, 6)
    assert CamClassifier(Colours(), 64, 1).features(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 4, 4)


def test_of_coarse_maps_only_the_last_is_taken():
    encoder = Colours()
    encoder.feature_info = ({"reduction": 32}, {"reduction": 64})
    assert CamClassifier(encoder, 64, 1).level == 1


@pytest.mark.parametrize("info", [None, ({"reduction": 16},)])
def test_an_encoder_without_feature_maps_is_refused(info: object):
    encoder = torch.nn.Linear(3, 3)
    encoder.feature_info = info
    with pytest.raises(ConfigError, match="Linear gives no feature maps; choose another --encoder"):
        CamClassifier(encoder, 64, 1)


def test_input_is_converted_for_an_encoder_that_asks_for_it():
    encoder = Colours()
    model = CamClassifier(encoder, 32, 1)
    expect(encoder, Statistics(tuple(m - 5 * s for m, s in zip(MEAN, STD, strict=True)), STD))
    torch.testing.assert_close(model.features(torch.zeros(1, 3, 32, 32)), torch.full((1, 3, 2, 2), 5.0))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 160 x 96 px of tissue of changing colour, in patches of 64 px."""
    rgb = tissue((160, 96))
    rgb[:, 60:100, 0] //= 2
    rgb[20:40, :, 2] //= 2
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64)["slide"])


GRID = InstanceGrid(8, 64, 2)


def colour_model(bias: float = 0.0) -> CamClassifier:
    """Class 0 is red against green, class 1 blue against green."""
    model = CamClassifier(Colours(), 32, 2)
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]]))
        model.linear.bias.fill_(bias)
    return model


def slow_scores(store: SlideStore, model: CamClassifier) -> np.ndarray:
    """The maps of all windows, added cell by cell as the module's docstring says it."""
    width, height = store.grid.size_px
    rows, cols = height // 8, width // 8
    known = np.zeros((rows, cols), bool)
    for r, c in GRID.cells(store, 0.5):
        known[r, c] = True
    values: dict[tuple[int, int, int], list[tuple[float, int]]] = {}
    fading = (1, 2, 3, 4, 4, 3, 2, 1)
    for top, left in itertools.product((0, 32), (0, 32, 64, 96)):
        rgb = store.read(Window(left, top, 64, 64)).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
        x = normalise(torch.from_numpy(np.rint(rgb).astype(np.uint8).transpose(2, 0, 1)[None].copy()))
        logits = model(x)[0]
        large = F.interpolate(model.maps(x), size=(8, 8), mode="bilinear")[0]
        for k, i, j in itertools.product(range(2), range(8), range(8)):
            v = float(large[k, i, j]) if logits[k] >= 0 else 0.0
            values.setdefault((k, top // 8 + i, left // 8 + j), []).append((v, fading[i] * fading[j]))
    out = np.full((2, rows, cols), NAN)
    for (k, r, c), parts in values.items():
        if known[r, c]:
            out[k, r, c] = max(0.0, sum(v * w for v, w in parts) / sum(w for _, w in parts))
    highest = np.nanmax(out, axis=(1, 2), keepdims=True)
    return out / np.where(highest > 0, highest, 1)


@pytest.mark.parametrize("bias", [0.0, -0.3])
@torch.inference_mode()
def test_scores_equal_the_weighted_mean_of_window_maps_written_out(slide: SlideStore, bias: float):
    model = colour_model(bias)
    scores = cam.score(model, ScoreContext(slide, GRID, CPU), Params())
    assert scores.stride_px == 8
    expected = slow_scores(slide, model)
    assert np.nanmax(expected[0]) == 1
    np.testing.assert_allclose(scores.values, expected, atol=0.02)
    np.testing.assert_array_equal(np.isnan(scores.values), np.isnan(expected))


def test_where_the_classifier_does_not_find_a_class_its_map_is_zero(slide: SlideStore):
    values = cam.score(colour_model(-100.0), ScoreContext(slide, GRID, CPU), Params()).values
    assert (values[~np.isnan(values)] == 0).all()
    assert (~np.isnan(values)).any()


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_a_class_is_painted_above_a_share_of_its_maximum(slide: SlideStore, threshold: float):
    params = Params(threshold=threshold)
    scores = cam.score(colour_model(), ScoreContext(slide, GRID, CPU), params)
    np.testing.assert_array_equal(np.isnan(scores.background), np.isnan(scores.values[0]))
    top = np.nan_to_num(scores.values).max(0)
    expected = np.where(top > threshold, np.nan_to_num(scores.values).argmax(0) + 1, 0)
    expected[np.isnan(scores.background)] = IGNORE
    np.testing.assert_array_equal(cam.mask(scores, params), expected)
    assert {1, 2} <= set(np.unique(expected))
    assert threshold < 0.5 or 0 in expected


def test_the_instance_grid_scores_cells_and_sees_whole_patches():
    assert cam.instance_grid(256, Params()) == InstanceGrid(16, 256, 2)
    with pytest.raises(ConfigError, match=r"cam.map_size: 16 does not divide a patch of 250 px"):
        cam.instance_grid(250, Params())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("threshold", [0.0, 1.0, NAN]),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(field: str, values: list[float]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"cam\.{field}: {value}"):
            Params(**{field: value})


@pytest.mark.slow
def test_the_map_is_highest_where_the_texture_was_planted(small_cohort: Cohort, run: object):
    from wsipipe.config.options import PseudolabelConfig
    from wsipipe.pseudolabel.stage import run as pseudolabel

    options = PseudolabelConfig(
        labels=str(small_cohort.labels()), method="cam", encoder="resnet18_quarter", pretrain=False
    )
    values = {"shrink": 1, "steps": 200, "batch": 16, "lr": 2e-3}
    report, stores = pseudolabel(
        list(small_cohort.stores.values()), PseudolabelOptions(options, {"cam": values}), RunContext(run)
    )
    assert report.exit_code == 0
    planted, others = [], []
    for path in stores:
        store = SlideStore(path)
        scores = store.scores("cam").read(Window(0, 0, 48, 48))[0]
        for row, col, _ in store.grid.windows():
            cell = small_cohort.planted.get((store.slide_id, row, col))
            part = scores[row * 16 : row * 16 + 16, col * 16 : col * 16 + 16].reshape(4, 4, 4, 4).mean((1, 3))
            if cell is None:
                assert (part == 0).all(), "a class that the label excludes has no map"
            else:
                planted.append(part[cell])
                others.append(np.delete(part.ravel(), cell[0] * 4 + cell[1]).mean())
    assert np.mean(np.array(planted) > np.array(others)) > 0.8
    assert np.mean(planted) > 2 * np.mean(others)
