"""IRNet: maps, seeds and scores by their formulas, and what training is given."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.textures import tiled_pictures, tissue
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.labels import IGNORE, Classes
from wsipipe.nn.encoders import create_encoder, normalise
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import ScoreContext, ScoreMap
from wsipipe.pseudolabel.methods import irnet
from wsipipe.pseudolabel.methods.irnet import Params, boundary_training
from wsipipe.pseudolabel.methods.irnet.boundary import BoundaryNet
from wsipipe.pseudolabel.methods.irnet.boundary_training import seed_pools, train_boundary
from wsipipe.pseudolabel.methods.irnet.losses import Pairs, boundary_loss
from wsipipe.pseudolabel.methods.irnet.network import IrNet, tissue_cells
from wsipipe.pseudolabel.methods.irnet.seeds import published_seeds
from wsipipe.pseudolabel.methods.irnet.window_seeds import may_hold, mean_maxima, window_seeds
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.sampling import balanced_sample
from wsipipe.pseudolabel.shared.walk import Walk, random_walk
from wsipipe.pseudolabel.shared.windows import Windows
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

NAN = float("nan")
CPU = torch.device("cpu")
GRID = InstanceGrid(8, 64, 2)


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_encoder("resnet18_quarter").eval()


def network(classes: int = 2, bias: float | None = None, **params: Any) -> IrNet:
    names = Classes(tuple("abc"[:classes]))
    torch.manual_seed(1)
    model = irnet.build(names, encoder(), GRID, Params(**params))
    assert isinstance(model, IrNet)
    # untrained, it says about 0.5 everywhere, and nothing walks
    torch.nn.init.constant_(model.boundary.boundary_branch.last.bias, -3.0)
    if bias is not None:
        torch.nn.init.constant_(model.classifier.linear.bias, bias)
    return model.eval()


def windows(count: int, labels: list[list[float]], patch: bool = True, seed: int = 0) -> Windows:
    """Windows of 32 px of noise, their right quarter being glass."""
    rng = np.random.default_rng(seed)
    mask = np.ones((count, 32, 32), bool)
    mask[:, :, 24:] = False
    rgb = rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    return Windows(rgb, mask, torch.tensor(labels), np.arange(count), np.full(count, patch))


def slow_maps(model: IrNet, x: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Step 1, one scale and one image after the other."""
    total = torch.zeros(len(x), 2, 8, 8)
    for scale in scales:
        side = round(32 * scale)
        sized = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        for mirrored in (False, True):
            maps = model.classifier.maps(torch.flip(sized, [3]) if mirrored else sized)
            maps = torch.where(maps > 0, maps, 0)
            maps = torch.flip(maps, [3]) if mirrored else maps
            total += F.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False)
    return total


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5, 2.0)])
@torch.inference_mode()
def test_class_maps_are_summed_over_scales_and_mirror_images(scales: tuple[float, ...]):
    model = network(scales=scales)
    x = normalise(torch.from_numpy(windows(2, [[1, 0], [0, 1]]).rgb))
    maps, logits = model.class_maps(x)
    torch.testing.assert_close(maps, slow_maps(model, x, scales), atol=1e-4, rtol=1e-4)
    assert logits.shape == (2, 2)
    if scales == (1.0,):
        torch.testing.assert_close(
            logits, (model.classifier(x) + model.classifier(x.flip(-1))) / 2, atol=1e-4, rtol=1e-4
        )


def test_a_window_may_hold_a_class_by_its_label_and_in_windows_of_slides_by_the_classifier_too():
    logits = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    of_slide, of_patch = (windows(2, [[1, 0], [1, NAN]], patch) for patch in (False, True))
    both = np.arange(2)
    assert may_hold(of_slide, both, logits, Params()).tolist() == [[True, False], [False, False]]
    assert may_hold(of_patch, both, logits, Params()).tolist() == [[True, False], [True, False]]
    assert may_hold(of_slide, both, logits, Params(as_published=True)).tolist() == [[True, False], [True, False]]


def test_seeds_are_of_the_labelled_classes_of_other_tissue_and_of_glass():
    model, params = network(), Params()
    w = windows(3, [[1, 0], [0, 1], [0, 0]])
    seeds = window_seeds(model, w, params)
    assert seeds.shape == (3, 8, 8)
    assert (seeds[:, :, 6:] == 0).all()
    allowed = [{1, 3, IGNORE}, {2, 3, IGNORE}, {3}]
    for found, kinds in zip(seeds[:, :, :6], allowed, strict=True):
        assert set(found.unique().tolist()) <= kinds
    with torch.inference_mode():
        maps = model.class_maps(normalise(torch.from_numpy(w.rgb)))[0][0, 0]
    share = (maps / maps.max())[:, :6]
    torch.testing.assert_close(seeds[0, :, :6] == 1, share >= 0.7)
    torch.testing.assert_close(seeds[0, :, :6] == 3, share < 0.05)


def test_published_seeds_know_no_tissue():
    seeds = window_seeds(network(), windows(2, [[1, 0], [0, 0]]), Params(as_published=True))
    assert seeds.shape == (2, 8, 8)
    assert set(seeds[0].unique().tolist()) <= {0, 1, IGNORE}
    assert (seeds[1] == 0).all()


def test_published_seeds_are_those_of_the_full_size_at_the_centres_of_cells():
    model, w = network(), windows(2, [[1, 0], [1, 1]])
    got = window_seeds(model, w, Params(as_published=True))
    with torch.inference_mode():
        maps = model.class_maps(normalise(torch.from_numpy(w.rgb)))[0] * w.labels[:, :, None, None]
    shares = [m / m.amax((1, 2), keepdim=True).clamp_min(1e-9) for m in maps]
    for found, share, rgb in zip(got, shares, w.rgb, strict=True):
        fine = F.interpolate(share[None], size=(32, 32), mode="bilinear", align_corners=False)[0]
        full = published_seeds(fine, torch.from_numpy(rgb), 0.7, 0.05)
        assert torch.equal(found, full[2::4, 2::4])
        assert not torch.equal(found, full[::4, ::4])
        assert not torch.equal(found, full[3::4, 3::4])


def test_half_of_what_is_drawn_holds_two_kinds_of_seeds(caplog: pytest.LogCaptureFixture):
    seeds = torch.full((6, 4, 4), IGNORE, dtype=torch.uint8)
    seeds[1, 0], seeds[2, 0], seeds[2, 1], seeds[4] = 1, 1, 3, 0
    seeds[4, 0] = 2
    assert [p.tolist() for p in seed_pools(seeds)] == [[2, 4], [0, 1, 2, 3, 4, 5]]
    assert not caplog.records
    for alike in (seeds[:2], seeds[:1]):
        with caplog.at_level(logging.WARNING):
            assert [p.tolist() for p in seed_pools(alike)] == [list(range(len(alike)))]
        assert "no window holds seeds of two kinds" in caplog.text
        caplog.clear()


def two_sided(count: int) -> tuple[np.ndarray, Tensor]:
    """Windows of 32 px, dark left of a line and light right of it, and their seeds: two classes, 255 at the line."""
    rng = np.random.default_rng(0)
    rgb, seeds = np.empty((count, 3, 32, 32), np.uint8), torch.full((count, 8, 8), IGNORE, dtype=torch.uint8)
    for i in range(count):
        at = int(rng.integers(3, 6))
        noisy = rng.normal(0, 6, (3, 32, 32)) + np.where(np.arange(32) < 4 * at, 110, 190)
        rgb[i] = np.clip(noisy, 0, 255)
        seeds[i, :, : at - 1], seeds[i, :, at + 1 :] = 1, 2
    return rgb, seeds


def test_the_boundary_is_learned_between_seeds_that_differ_and_the_loss_falls():
    rgb, seeds = two_sided(8)
    net = BoundaryNet(encoder(), displacement=True)
    frozen = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    params = Params(boundary_steps=30, boundary_batch=4, boundary_lr=2e-2, pair_radius=5, displacement=True)
    losses = train_boundary(net, rgb, seeds, params, ComputeContext(CPU, 0))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    assert all(torch.equal(v, frozen[k]) for k, v in net.backbone.state_dict().items())
    with torch.inference_mode():
        b = net.boundary(normalise(torch.from_numpy(rgb)))
        shift = net.eval()(normalise(torch.from_numpy(rgb)))[1].mean((0, 2, 3))
    at_line, inside = b[seeds == IGNORE].mean(), b[(seeds == 1) | (seeds == 2)].mean()
    assert at_line > 3 * inside
    torch.testing.assert_close(shift, torch.zeros(2), atol=1e-3, rtol=0)


def test_half_of_every_step_shows_two_kinds_of_seeds(monkeypatch: pytest.MonkeyPatch):
    """Of twelve windows one is mixed: without a pool of its own it would be one of eight, or none."""
    rgb, seeds = two_sided(12)
    seeds[torch.arange(12) != 7] = 1
    drawn: list[Tensor] = []

    def draw(*how: Any) -> Tensor:
        drawn.append(balanced_sample(*how))
        return drawn[-1]

    monkeypatch.setattr(boundary_training, "balanced_sample", draw)
    params = Params(boundary_steps=3, boundary_batch=8, pair_radius=2)
    train_boundary(BoundaryNet(encoder()), rgb, seeds, params, ComputeContext(CPU, 0))
    assert [len(d) for d in drawn] == [8, 8, 8]
    assert all((d == 7).sum() >= 4 for d in drawn)
    assert len(torch.cat(drawn).unique()) > 4, "the others take part"


@pytest.mark.parametrize("as_published", [False, True])
def test_pairs_of_seeds_count_by_class_except_as_published(as_published: bool, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def loss(a: Tensor, pairs: Pairs, by_class: bool) -> Tensor:
        asked.append(by_class)
        return boundary_loss(a, pairs, by_class)

    monkeypatch.setattr(boundary_training, "boundary_loss", loss)
    params = Params(boundary_steps=2, boundary_batch=2, pair_radius=2, as_published=as_published)
    train_boundary(BoundaryNet(encoder()), *two_sided(2), params, ComputeContext(CPU, 0))
    assert asked == [not as_published] * 2


def test_maps_are_scaled_by_the_mean_of_their_maxima_in_windows_of_their_class():
    model, params = network(bias=5.0), Params()
    w = windows(4, [[1, 0], [1, NAN], [0, 1], [0, 0]])
    x, cells = normalise(torch.from_numpy(w.rgb)), tissue_cells(torch.from_numpy(w.tissue))
    with torch.inference_mode():
        boundary = torch.where(cells, model.boundary.boundary(x), 1)
        walked = random_walk(model.class_maps(x)[0], boundary, Walk(4, 10.0, 5))
    tops = walked.flatten(2).max(2).values
    expected = torch.stack([tops[:2, 0].mean(), tops[2, 1]])
    torch.testing.assert_close(mean_maxima(model, w, params), expected, atol=1e-4, rtol=1e-4)


def test_a_class_that_is_found_in_none_of_its_windows_is_never_painted(caplog: pytest.LogCaptureFixture):
    model = network(bias=-50.0)
    assert torch.isinf(mean_maxima(model, windows(2, [[1, 0], [0, 1]]), Params())).all()
    assert "finds class 2 in none of its training windows" in caplog.text


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """One patch of 64 px of changing colour, its right quarter being glass."""
    rgb = tissue((64, 64))
    rgb[:, 30:50, 0] //= 2
    rgb[20:40, :, 2] //= 2
    rgb[:, 48:] = 244
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"slide": rgb}, patch_px=64)["slide"])


def by_hand(model: IrNet, store: SlideStore, walk: Walk, glass: bool) -> Tensor:
    """M* of the slide's one window, [K, 8, 8]; no walk enters its glass, if `glass` says so."""
    rgb = store.read(Window(0, 0, 64, 64)).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
    x = normalise(torch.from_numpy((rgb + 0.5).astype(np.uint8).transpose(2, 0, 1)[None].copy()))
    fine = (store.labels("tissue").read(Window(0, 0, 64, 64)) == 1).reshape(32, 2, 32, 2).mean((1, 3)) >= 0.5
    cells = fine.reshape(8, 4, 8, 4).mean((1, 3)) >= 0.5
    assert 8 <= (~cells).sum() <= 24
    with torch.inference_mode():
        boundary = model.boundary.boundary(x)
        if glass:
            boundary[0, torch.from_numpy(~cells)] = 1
        return random_walk(model.class_maps(x)[0], boundary, walk)[0]


@pytest.mark.parametrize(("exp_times", "beta", "radius"), [(0, 10.0, 5), (2, 10.0, 5), (3, 2.0, 3)])
def test_scores_are_walked_maps_over_the_scale_of_the_fit(slide: SlideStore, exp_times: int, beta: float, radius: int):
    params = Params(map_size=8, exp_times=exp_times, beta=beta, radius=radius, background=0.3)
    model, walk = network(bias=5.0), Walk(2**exp_times, beta, radius)
    expected = by_hand(model, slide, walk, glass=True)
    model.top.copy_(expected.amax((1, 2)) * torch.tensor([0.8, 2.0]))
    scores = irnet.score(model, ScoreContext(slide, GRID, CPU), params)
    assert scores.stride_px == 8
    assert 40 <= scores.known.sum() < 64
    found, unmasked = scores.values[:, scores.known], by_hand(model, slide, walk, glass=False)
    scaled, wrong = ((m / model.top.view(2, 1, 1)).clamp(max=1).numpy()[:, scores.known] for m in (expected, unmasked))
    np.testing.assert_allclose(found, scaled, atol=1e-3)
    assert np.abs(found - wrong).max() > 0.02, "the glass makes a difference"
    assert (scores.background[scores.known] == np.float32(0.3)).all()


def test_published_scores_are_divided_by_the_highest_of_all_classes_and_know_no_tissue(slide: SlideStore):
    model, params = network(bias=5.0), Params(map_size=8, exp_times=1, as_published=True)
    expected, masked = (by_hand(model, slide, Walk(2, 10.0, 5), glass) for glass in (False, True))
    scores = irnet.score(model, ScoreContext(slide, GRID, CPU), params)
    found = scores.values[:, scores.known]
    np.testing.assert_allclose(found, (expected / expected.max()).numpy()[:, scores.known], atol=1e-3)
    assert np.abs(found - (masked / masked.max()).numpy()[:, scores.known]).max() > 0.01, "the glass makes a difference"


def test_the_walk_has_the_steps_exponent_and_radius_of_the_parameters():
    assert Params(exp_times=3, beta=4.0, radius=7).walk == Walk(8, 4.0, 7)
    assert Params().walk == Walk(4, 10.0, 5)


def test_a_class_that_is_not_found_in_a_window_has_no_map(slide: SlideStore):
    scores = irnet.score(network(bias=-50.0), ScoreContext(slide, GRID, CPU), Params(map_size=8))
    assert (scores.values[:, scores.known] == 0).all()


def test_the_highest_class_is_painted_where_it_exceeds_the_background():
    values = np.array([[0.2, 0.3, 0.6, NAN], [0.1, 0.1, 0.7, NAN]], np.float32).reshape(2, 1, 4)
    none = np.array([[0.25, 0.25, 0.25, NAN]], np.float32)
    assert irnet.mask(ScoreMap(values, none, 16), Params()).tolist() == [[0, 1, 2, IGNORE]]


@pytest.mark.parametrize("backbone", ["classifier", "start"])
def test_the_frozen_backbone_is_the_trained_classifiers_or_as_it_came(backbone: str, monkeypatch: pytest.MonkeyPatch):
    def trained(model: torch.nn.Module, *rest: object) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)

    w = windows(2, [[1, 0], [0, 1]])
    monkeypatch.setattr(irnet, "draw_windows", lambda *a: w)
    monkeypatch.setattr(irnet, "train_windows", trained)
    monkeypatch.setattr(irnet, "train_boundary", lambda *a: [])
    run = SimpleNamespace(classes=Classes(("a", "b")), encoder=encoder, compute=ComputeContext(CPU, 0))
    model = irnet.fit([], GRID, Params(backbone=backbone), run)
    wanted = model.classifier.encoder if backbone == "classifier" else encoder()
    own = model.boundary.backbone.encoder.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in wanted.state_dict().items())


def test_a_fit_learns_boundaries_from_the_seeds_of_its_windows_and_then_measures_the_scale(
    monkeypatch: pytest.MonkeyPatch,
):
    w, params = windows(3, [[1, 0], [0, 1], [0, 0]]), Params()
    given: list[tuple[torch.nn.Module, np.ndarray, Tensor]] = []

    def trained(model: CamClassifier, *rest: object) -> None:
        torch.nn.init.constant_(model.linear.bias, 5.0)

    def learned(net: BoundaryNet, rgb: np.ndarray, seeds: Tensor, *rest: object) -> list[float]:
        given.append((net, rgb, seeds))
        with torch.no_grad():
            for p in net.boundary_branch.parameters():
                p.sub_(0.5)
        return []

    monkeypatch.setattr(irnet, "draw_windows", lambda *a: w)
    monkeypatch.setattr(irnet, "train_windows", trained)
    monkeypatch.setattr(irnet, "train_boundary", learned)
    run = SimpleNamespace(classes=Classes(("a", "b")), encoder=encoder, compute=ComputeContext(CPU, 0))
    model = irnet.fit([], GRID, params, run)
    ((net, rgb, seeds),) = given
    assert net is model.boundary
    assert rgb is w.rgb
    assert torch.equal(seeds, window_seeds(model, w, params))
    torch.testing.assert_close(model.top, mean_maxima(model, w, params))
    assert (model.top != 1).all()
    learned(model.boundary, rgb, seeds)
    assert not torch.allclose(model.top, mean_maxima(model, w, params)), "the boundaries are in the scale"


def test_the_instance_grid_scores_cells_and_needs_whole_cells_of_four_input_px():
    assert irnet.instance_grid(256, Params()) == InstanceGrid(16, 256, 2)
    with pytest.raises(ConfigError, match=r"irnet.map_size: 16 does not divide a patch of 250 px"):
        irnet.instance_grid(250, Params())
    with pytest.raises(ConfigError, match=r"irnet.shrink: 2 gives windows of 54 px, which 4 does not divide"):
        irnet.instance_grid(108, Params(map_size=9))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("boundary_steps", [0]),
        ("boundary_batch", [1]),
        ("pair_radius", [1]),
        ("radius", [1]),
        ("boundary_lr", [0.0, NAN]),
        ("beta", [0.0, NAN]),
        ("seed_fg", [0.0, 1.0, NAN]),
        ("seed_bg", [0.0, 0.8, NAN]),
        ("background", [0.0, 1.0, NAN]),
        ("exp_times", [-1, 256]),
        ("backbone", ["other"]),
        ("scales", [(), (9.0,)]),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_dotted_name(field: str, values: list[Any]):
    for value in values:
        with pytest.raises(ConfigError, match=rf"irnet\.{field}: "):
            Params(**{field: value})
