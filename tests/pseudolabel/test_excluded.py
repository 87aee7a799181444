"""What labels exclude: found cell by cell, removed from the scores, and no rival of the other classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from support.textures import tiled_pictures, tissue
from torch import Tensor, nn

from wsipipe.labels import IGNORE, Classes
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.method import ScoreContext, ScoreMap
from wsipipe.pseudolabel.methods import cam, drs, histosegnet
from wsipipe.pseudolabel.methods.histosegnet.network import HistoSegNet
from wsipipe.pseudolabel.paint import LabelConstraint, apply_constraints, excluded_cells
from wsipipe.pseudolabel.shared.cam import CamClassifier
from wsipipe.pseudolabel.shared.slide_maps import crop_cells, slide_maps
from wsipipe.store import SlideStore

CPU = torch.device("cpu")
GRID = InstanceGrid(8, 64, 2)
ROWS, COLS = 12, 20


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """160 x 96 px of tissue in patches of 64 px."""
    return SlideStore(tiled_pictures(tmp_path_factory.mktemp("slide"), {"s": tissue((160, 96))}, patch_px=64)["s"])


def test_a_row_excludes_cells_whose_centre_lies_in_its_box(slide: SlideStore):
    constraints = [LabelConstraint((1, 0)), LabelConstraint((0, 1), (10.0, 20.0, 60.0, 30.0))]
    excluded = excluded_cells(constraints, 2, slide, 8)
    assert excluded[1].all()
    for r, c in np.ndindex(ROWS, COLS):
        assert excluded[0, r, c] == (10 <= 8 * c + 4 < 70 and 20 <= 8 * r + 4 < 50)


def test_where_every_class_is_excluded_the_background_is_certain():
    values = np.full((2, 1, 4), 0.9, np.float32)
    none = np.array([[0.1, 0.1, 0.1, np.nan]], np.float32)
    values[:, 0, 3] = np.nan
    excluded = np.array([[[0, 1, 1, 1]], [[0, 0, 1, 1]]], bool)
    got = ScoreMap(values, none, 8).without(excluded)
    np.testing.assert_array_equal(got.background, np.array([[0.1, 0.1, 1, np.nan]], np.float32))
    np.testing.assert_array_equal(got.values[:, 0, :3], np.array([[0.9, 0, 0], [0.9, 0.9, 0]], np.float32))


def test_tissue_without_classes_by_its_label_is_background_for_drs_not_unexplained(slide: SlideStore):
    uncertain = ScoreMap(np.full((1, ROWS, COLS), 0.1, np.float32), np.full((ROWS, COLS), 0.1, np.float32), 8)
    assert (drs.mask(uncertain, drs.Params()) == IGNORE).all()
    assert (drs.mask(apply_constraints(uncertain, [LabelConstraint((0,))], slide), drs.Params()) == 0).all()


def test_excluded_cells_are_cropped_as_windows_of_the_slide():
    excluded = np.random.default_rng(0).random((3, 10, 13)) < 0.5
    got = crop_cells(excluded, np.array([[0, 0], [4, 7], [8, 12]]), 4).numpy()
    assert got.shape == (3, 3, 4, 4)
    for k, (top, left) in enumerate(((0, 0), (4, 7), (8, 12))):
        for r, c in np.ndindex(4, 4):
            inside = top + r < 10 and left + c < 13
            expected = excluded[:, top + r, left + c] if inside else np.zeros(3, bool)
            np.testing.assert_array_equal(got[k, :, r, c], expected)


def test_maps_of_a_slide_get_the_excluded_cells_of_their_windows(slide: SlideStore):
    excluded = np.random.default_rng(1).random((2, ROWS, COLS)) < 0.5
    got = slide_maps(ScoreContext(slide, GRID, CPU, excluded), 0.5, 2, lambda rgb, tissue, excluded: excluded.float())
    known = ~np.isnan(got)
    assert known.sum() > 300
    np.testing.assert_allclose(got[known], excluded[known], atol=1e-6)


class Constant(nn.Module):
    """An encoder whose map is 1 in both channels, whatever it sees."""

    feature_info = ({"reduction": 4},)

    def forward_intermediates(self, x: Tensor, **how: object) -> list[Tensor]:
        return [torch.ones_like(F.avg_pool2d(x, 4))[:, :2]]


def network(params: histosegnet.Params, logits: tuple[float, float]) -> HistoSegNet:
    """Two classes, found everywhere with these logits."""
    classifier = CamClassifier(Constant(), 32, 2)
    with torch.no_grad():
        classifier.linear.weight.copy_(torch.diag(torch.tensor(logits)))
        classifier.linear.bias.zero_()
    return HistoSegNet(classifier, Classes(("a", "b")), params).eval()


@pytest.mark.parametrize("evidence", ["remainder", "absence"])
def test_a_class_that_a_label_excludes_holds_no_other_class_back(slide: SlideStore, evidence: str):
    params = histosegnet.Params(other_evidence=evidence)
    model = network(params, (2.0, 1.0))

    def paint_mask(excluded: NDArray[np.bool_] | None) -> set[int]:
        scores = histosegnet.score(model, ScoreContext(slide, GRID, CPU, excluded), params)
        mask = histosegnet.mask(scores, params)
        return set(np.unique(mask[scores.known]).tolist())

    only_b = np.zeros((2, ROWS, COLS), bool)
    only_b[0] = True
    assert paint_mask(None) == {1}
    assert paint_mask(only_b) == {2}
    assert paint_mask(np.ones((2, ROWS, COLS), bool)) == {0}


def test_class_maps_are_scaled_by_what_no_label_excludes(slide: SlideStore, monkeypatch: pytest.MonkeyPatch):
    maps = np.ones((1, ROWS, COLS), np.float32)
    maps[0, :, :5] = 4
    monkeypatch.setattr(cam, "slide_maps", lambda *a: maps.copy())
    model = CamClassifier(Constant(), 32, 1)
    excluded = np.zeros((1, ROWS, COLS), bool)
    excluded[0, :, :5] = True
    assert cam.score(model, ScoreContext(slide, GRID, CPU), cam.Params()).values[0, 0, 10] == 0.25
    scores = cam.score(model, ScoreContext(slide, GRID, CPU, excluded), cam.Params())
    assert scores.values[0, 0, 10] == 1
    assert (scores.values[0, :, :5] == 0).all()
