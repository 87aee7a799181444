"""HistoSegNet: gating, thresholds, the steps from maps to scores written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.textures import tiled_pictures, tissue
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import Classes
from wsipipe.nn.encoders import normalise
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import FitContext, ScoreContext, ScoreMap
from wsipipe.pseudolabel.methods import histosegnet
from wsipipe.pseudolabel.methods.histosegnet import Params
from wsipipe.pseudolabel.methods.histosegnet.activation import MAP_RULES, class_maps
from wsipipe.pseudolabel.methods.histosegnet.adjust import Adjustment, adjusted, class_evidence
from wsipipe.pseudolabel.methods.histosegnet.background import glass_centre
from wsipipe.pseudolabel.methods.histosegnet.network import HistoSegNet
from wsipipe.pseudolabel.methods.histosegnet.thresholds import thresholds
from wsipipe.pseudolabel.methods.histosegnet.x17 import X17
from wsipipe.pseudolabel.shared.blur import blurred
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.windows import Windows, draw_windows
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

CPU = torch.device("cpu")
NAN = float("nan")
CLASSES = Classes(("red", "green", "blue"))
DEFAULT = Params()


class Colours(torch.nn.Module):
    """An encoder whose features are the mean colours of 4 x 4 px."""

    feature_info = ({"reduction": 4},)

    def forward_intermediates(self, x: Tensor, **how: object) -> list[Tensor]:
        return [F.avg_pool2d(x, 4)]


def colour_model(params: Params = DEFAULT, bias: float = 0.0) -> HistoSegNet:
    """Every class is its colour against the next one."""
    model = HistoSegNet(CamClassifier(Colours(), 32, 3), CLASSES, params)
    with torch.no_grad():
        model.network.linear.weight.copy_(torch.eye(3) - torch.eye(3).roll(1, 1))
        model.network.linear.bias.fill_(bias)
    return model.eval()


def shallow_model(params: Params) -> HistoSegNet:
    torch.manual_seed(0)
    model = HistoSegNet(X17(3, 4), CLASSES, params)
    torch.nn.init.normal_(model.network.norm.weight)
    model.network.settle([torch.randn(8, 3, 16, 16)])
    return model


MODELS: dict[str, Callable[[Params], HistoSegNet]] = {"encoder": colour_model, "x1.7": shallow_model}


def pictures(count: int = 4, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Windows uint8 [B, 3, s, s] of changing colour with a bright corner, and a tissue mask that says where it is."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(60, 220, (count, 3, side // 8, side // 8), generator=g).float()
    rgb = F.interpolate(coarse, size=(side, side), mode="nearest")
    known = torch.ones(count, side, side, dtype=torch.bool)
    known[:, : side // 2, : side // 4] = False
    return torch.where(known[:, None], rgb, 250).to(torch.uint8), known


@pytest.mark.parametrize("network", MODELS)
def test_grad_cam_without_a_backward_pass_is_grad_cam(network: str):
    model = MODELS[network](Params())
    a = model.features(normalise(pictures()[0])).detach().requires_grad_()
    slow = class_maps(MAP_RULES["gradcam"], a, model.scores(a))
    own, against = model.maps(a.detach())
    torch.testing.assert_close(slow * a.shape[2] * a.shape[3], own.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(against, -own)


@pytest.mark.parametrize("network", MODELS)
@pytest.mark.parametrize("activation", ["gradcam++", "layercam"])
def test_other_maps_are_made_with_gradients_for_and_against(network: str, activation: str):
    model = MODELS[network](Params(activation=activation))
    a = model.features(normalise(pictures()[0])).detach().requires_grad_()
    with torch.no_grad():
        maps = model.maps(a)
    for sign, got in zip((1.0, -1.0), maps, strict=True):
        torch.testing.assert_close(got, class_maps(MAP_RULES[activation], a, model.scores(a), sign))
    assert not torch.allclose(maps[0], -maps[1])


def test_cam_of_x17_is_of_the_normalised_maps():
    model = shallow_model(Params(activation="cam"))
    a = torch.rand(2, 16, 5, 5)
    expected = torch.einsum("kd,bdyx->bkyx", model.network.linear.weight, model.network.norm(a))
    torch.testing.assert_close(model.maps(a)[0], expected)


@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_a_present_class_reaches_its_score_and_an_absent_one_is_nowhere(seed: int, bias: float):
    model = colour_model(bias=bias)
    with torch.no_grad():
        a = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        g, absence = class_evidence(model, a, 8)
        s = model.scores(a).sigmoid()
        highest = F.interpolate(model.maps(a)[0], scale_factor=2, mode="bilinear", align_corners=False).amax((2, 3))
    for b, c in itertools.product(range(3), range(3)):
        if s[b, c] < 0.5:
            assert (g[b, c] == 0).all()
        else:
            assert g[b, c].min() >= 0
            if highest[b, c] > 1e-6:  # else the class is there by its bias alone, and nowhere in particular
                assert float(g[b, c].max()) == pytest.approx(float(s[b, c]), rel=1e-5)
            assert g[b, c].max() <= s[b, c] * (1 + 1e-5)
    assert absence.min() >= 0
    assert absence.max() <= 1


def slow_adjusted(model: HistoSegNet, rgb: Tensor, known: Tensor, adjust: Adjustment, params: Params) -> np.ndarray:
    """Steps 1 to 6 as the module's docstring has them, window by window and cell by cell; cells of 4 px, maps alike."""
    out = []
    for picture, where in zip(rgb, known, strict=True):
        a = F.avg_pool2d(normalise(picture[None]), 4)[0].double().numpy()
        w, b = (v.detach().double().numpy() for v in (model.network.linear.weight, model.network.linear.bias))
        raw = np.einsum("ck,kyx->cyx", w, a)
        s = 1 / (1 + np.exp(-(raw.mean((1, 2)) + b)))
        g, absence = np.zeros_like(raw), np.ones_like(raw) * (1 - s[:, None, None])
        for c in range(3):
            if s[c] >= float(model.theta[c]):
                g[c] = s[c] * np.maximum(raw[c], 0) / max(raw[c].max(), 1e-7)
                absence[c] = s[c] * np.maximum(-raw[c], 0) / max(np.abs(raw[c]).max(), 1e-7)
        fine = (~where).double()
        if adjust.centre is not None:
            fine = 1 / (1 + torch.exp(-4 * (picture.double().mean(0) - adjust.centre)))
        bg = 0.75 * blurred(fine[None], adjust.sigma_px)[0].numpy().reshape(8, 4, 8, 4).mean((1, 3))
        exempt, unpainted = ([CLASSES.names.index(n) for n in names] for names in (params.exempt, params.other))
        bg = np.clip(bg - np.max([np.zeros((8, 8)), *g[exempt]], axis=0), 0, 1)
        also = g[unpainted].copy()
        g[unpainted] = 0
        other = (
            params.other_share * (1 - np.max([bg, *g], axis=0))
            if params.other_evidence == "remainder"
            else absence.min(0)
        )
        other = np.max([other, *also], axis=0)
        maps = np.stack([bg, other, *g])
        left = maps.copy()
        for c in range(5):
            source = left if params.legacy_inplace else maps
            if c != 1 or params.other_evidence == "absence":
                left[c] = source[c] - np.delete(source, c, 0).max(0)
        out.append(np.clip(left, 0, 1))
    return np.stack(out)


@pytest.mark.parametrize(
    "values",
    [
        *({"other_share": u} for u in (0.0, 0.05, 0.2)),
        {"other_evidence": "absence", "exempt": ("red", "blue")},
        *({"other": ("green",), "other_evidence": e} for e in ("remainder", "absence")),
        {"legacy_inplace": True, "other_share": 0.05},
        {"background": "brightness", "exempt": ("blue",)},
    ],
    ids=str,
)
def test_the_adjusted_maps_are_the_steps_written_out(values: dict[str, object]):
    params = Params(**values)
    model = colour_model(params)
    model.theta.copy_(torch.tensor([0.45, 0.35, 0.4]))
    rgb, known = pictures()
    adjust = Adjustment(8, 1.2, 240.0 if params.background == "brightness" else None)
    got = adjusted(model, rgb, known, adjust, params)
    assert got.shape == (4, 5, 8, 8)
    np.testing.assert_allclose(got.numpy(), slow_adjusted(model, rgb, known, adjust, params), atol=1e-5)
    assert (got.sum((0, 2, 3)) > 0).sum() >= 3, "most channels take part"


def test_maps_finer_or_coarser_than_the_cells_are_averaged_or_enlarged():
    a, model = torch.rand(1, 3, 8, 8), colour_model()
    model.theta.fill_(-1.0)
    with torch.no_grad():
        maps, s = model.maps(a)[0], model.scores(a).sigmoid()[:, :, None, None]
        for cells, resized in (
            (4, F.avg_pool2d(maps, 2)),
            (16, F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)),
        ):
            positive = resized.clamp(min=0)
            g, _ = class_evidence(model, a, cells)
            torch.testing.assert_close(g, s * positive / positive.amax((2, 3), keepdim=True))


def test_every_class_has_a_theta_of_its_own_and_unknown_labels_do_not_count():
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.1], [0.4, 0.9], [0.3, 0.9], [0.99, 0.99]])
    labels = torch.tensor([[1.0, 0], [1, 0], [0, NAN], [0, 0], [NAN, NAN]])
    assert thresholds(scores, labels).tolist() == pytest.approx([0.6, 0.5])
    assert thresholds(scores[:2], labels[:2]).tolist() == pytest.approx([1 / 3, 0.5])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A slide of 160 x 96 px of tissue of changing colour, in patches of 64 px."""
    rgb = tissue((160, 96))
    rgb[:, 60:100, 0] //= 2
    rgb[20:40, :, 2] //= 2
    rgb[70:, 130:] = 244
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64)["slide"])


GRID = InstanceGrid(8, 64, 2)


def score(model: torch.nn.Module, slide: SlideStore, params: Params) -> ScoreMap:
    return histosegnet.score(model, ScoreContext(slide, GRID, CPU), params)


@pytest.mark.parametrize("bias", [0.0, -9.0])
@pytest.mark.parametrize(
    "values",
    [{"other_share": 0.05}, {"background": "brightness"}, {"background": "brightness", "glass": 200.0}],
    ids=str,
)
def test_scores_are_weighted_means_of_the_adjusted_maps_over_all_windows_that_cover_a_cell(
    slide: SlideStore, values: dict[str, object], bias: float
):
    params = Params(**values)
    model = colour_model(params, bias)
    scores = score(model, slide, params)
    assert scores.stride_px == 8
    centre = params.glass or glass_centre(slide)
    adjust = Adjustment(8, 2.4, centre if params.background == "brightness" else None)
    total, count = np.zeros((5, 12, 20)), np.zeros((12, 20))
    fading = np.outer([1, 2, 3, 4, 4, 3, 2, 1], [1, 2, 3, 4, 4, 3, 2, 1])
    mask = slide.labels("tissue").read(Window(0, 0, 160, 96)) == 1
    for top, left in itertools.product((0, 32), (0, 32, 64, 96)):
        rgb = slide.read(Window(left, top, 64, 64)).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
        known = mask[top : top + 64, left : left + 64].reshape(32, 2, 32, 2).mean((1, 3)) >= 0.5
        x = torch.from_numpy(np.floor(rgb + 0.5).astype(np.uint8).transpose(2, 0, 1)[None].copy())
        maps = adjusted(model, x, torch.from_numpy(known)[None], adjust, params)[0]
        total[:, top // 8 : top // 8 + 8, left // 8 : left // 8 + 8] += fading * maps.numpy()
        count[top // 8 : top // 8 + 8, left // 8 : left // 8 + 8] += fading
    tissue_cells = scores.known
    assert 100 < tissue_cells.sum() < 240
    np.testing.assert_allclose(scores.values[:, tissue_cells], (total / count)[2:, tissue_cells], atol=1e-5)
    np.testing.assert_allclose(scores.background[tissue_cells], (total / count)[:2, tissue_cells].max(0), atol=1e-5)
    assert np.isnan(scores.values[:, ~tissue_cells]).all()


def test_a_class_that_counts_as_other_is_never_painted(slide: SlideStore):
    params = Params(other=("red",))
    scores = score(colour_model(params), slide, params)
    assert (scores.values[0][scores.known] == 0).all()
    assert not (histosegnet.mask(scores, params) == 1).any()
    plainly = score(colour_model(), slide, Params())
    assert (histosegnet.mask(plainly, Params()) == 1).any()
    assert np.nanmax(scores.background) > 0.5


def test_the_instance_grid_scores_cells_and_sees_whole_patches():
    assert histosegnet.instance_grid(256, Params()) == InstanceGrid(16, 256, 2)
    assert histosegnet.instance_grid(448, Params(map_size=56, network="x1.7")).input_px == 224
    with pytest.raises(ConfigError, match=r"histosegnet.map_size: 16 does not divide a patch of 250 px"):
        histosegnet.instance_grid(250, Params())
    with pytest.raises(ConfigError, match=r"histosegnet.shrink: 2 gives windows of 90 px; x1.7 needs a multiple of 4"):
        histosegnet.instance_grid(180, Params(map_size=15, network="x1.7"))


def test_classes_that_there_are_not_are_refused_before_training():
    with pytest.raises(ConfigError, match=r"histosegnet.exempt: fat is no class; there are red, green, blue"):
        colour_model(Params(exempt=("red", "fat")))
    with pytest.raises(ConfigError, match=r"histosegnet.other: names all classes"):
        colour_model(Params(other=CLASSES.names))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        *((name, ["'nothing'"]) for name in ("network", "activation", "background", "other_evidence")),
        ("width", [0]),
        ("other_share", [-0.1, 1.1, NAN]),
        ("glass", [-1.0, 256.0, NAN]),
        ("blur_um", [-1.0, 101.0, NAN]),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(field: str, values: list[float | str]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"histosegnet\.{field}: {value}"):
            Params(**{field: value.strip("'") if isinstance(value, str) else value})


def whole(store: SlideStore, label: tuple[int, ...]) -> Bag:
    cells = GRID.cells(store, 0.5)
    return Bag(store.slide_id, store, np.ascontiguousarray(cells[:, ::-1] * 8), label, False, store.grid.frame)


def fitting(classes: Classes, encoder: Callable[[], torch.nn.Module] = Colours) -> FitContext:
    return FitContext(classes, encoder, False, ComputeContext(CPU, 0), lambda bags, instance_grid: [])


@pytest.mark.parametrize("network", ["x1.7", "encoder"])
def test_a_fit_carries_its_thresholds_and_loads_again(slide: SlideStore, network: str):
    params = Params(network=network, width=2, steps=2, batch=4, windows=6, activation="layercam")
    bags = [whole(slide, (1, 0)), whole(slide, (0, 1)), whole(slide, (0, 0))]
    run = fitting(Classes(("a", "b")))
    model = histosegnet.fit(bags, GRID, params, run)
    assert isinstance(model.network, X17) == (network == "x1.7")
    assert "theta" in model.state_dict()
    again = histosegnet.build(run.classes, Colours(), GRID, params)
    again.load_state_dict(model.state_dict())
    a, b = (score(m, slide, params) for m in (model, again))
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.background, b.background)


def test_thresholds_are_of_the_windows_that_keep_their_label(slide: SlideStore, monkeypatch: pytest.MonkeyPatch):
    logits = torch.linspace(-3, 3, 20)[:, None]
    seen: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(histosegnet, "train_windows", lambda *a: None)
    monkeypatch.setattr(histosegnet, "apply_in_batches", lambda *a: logits)
    monkeypatch.setattr(histosegnet, "thresholds", lambda *given: seen.append(given) or torch.tensor([0.7]))
    bags = [whole(slide, (0,)), whole(slide, (1,))]
    for prevalence, positive in ((0.5, 4), (0.0, 10)):
        model = histosegnet.fit(bags, GRID, Params(windows=10, prevalence=prevalence), fitting(Classes(("a",))))
        assert float(model.theta) == pytest.approx(0.7)
        scores, labels = seen[-1]
        torch.testing.assert_close(
            scores, 1 / (1 + torch.exp(-logits)), msg="probabilities, as thetas are compared with"
        )
        assert int((labels == 1).sum()) == positive
        assert int((labels == 0).sum()) == 10


def test_a_fit_gives_the_batch_norms_of_x17_the_statistics_of_all_training_windows(
    slide: SlideStore, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Windows] = []

    def draw(*how: Any) -> Windows:
        drawn.append(draw_windows(*how))
        return drawn[-1]

    monkeypatch.setattr(histosegnet, "draw_windows", draw)
    monkeypatch.setattr(histosegnet, "train_windows", lambda *a: None)
    monkeypatch.setattr(histosegnet, "WINDOWS_PER_CALL", 4)  # three calls of the network, of as many windows each
    params = Params(network="x1.7", width=2, windows=12, prevalence=0.0)
    net = histosegnet.fit([whole(slide, (1,))], GRID, params, fitting(Classes(("a",)))).network
    assert isinstance(net, X17)
    assert not net.training
    x = normalise(torch.from_numpy(drawn[0].rgb))
    assert len(x) == 12
    with torch.no_grad():
        first = net.layers[:2](x * net.scale + net.offset)
        last = net.features(x)
    torch.testing.assert_close(net.layers[2].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(last.mean((0, 2, 3)), torch.zeros(8), atol=1e-2)
    torch.testing.assert_close(net.norm.running_mean, last.mean((0, 2, 3)), rtol=0.2, atol=0.05)
