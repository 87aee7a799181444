"""The refinement network: its target against a slow loop, its loss, its views, and a map that it learns to draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.examples import examples
from torch import nn

from wsipipe.nn import augment
from wsipipe.nn.encoders import MEAN, STD
from wsipipe.pseudolabel.methods.drs.refiner import (
    RefinerTraining,
    keep_argmax,
    to_bytes,
    train_refiner,
    window_pools,
)
from wsipipe.runtime.device import ComputeContext

CPU = ComputeContext(torch.device("cpu"), 3)


@examples(50)
@given(arrays(np.int8, (2, 3, 2, 4), elements=st.integers(0, 4)))
def test_the_target_keeps_the_first_highest_channel_of_each_place(values: np.ndarray):
    maps = torch.from_numpy(values).float()
    target = keep_argmax(maps)
    for b, i, j in np.ndindex(2, 2, 4):
        column = values[b, :, i, j].tolist()
        wanted = [0.0] * 3
        wanted[column.index(max(column))] = float(max(column))
        assert target[b, :, i, j].tolist() == wanted


@examples(50)
@given(arrays(np.float32, (1, 4, 3, 3), elements=st.floats(0, 1, width=32), unique=True))
def test_at_most_one_channel_of_a_place_is_not_zero_and_it_is_the_highest(values: np.ndarray):
    maps = torch.from_numpy(values)
    target = keep_argmax(maps)
    assert ((target != 0).sum(1) <= 1).all()
    assert torch.equal(target.amax(1), maps.amax(1))


def test_maps_survive_8_bits_to_half_a_step():
    maps = torch.linspace(-0.5, 1.5, 2001).view(1, 1, 1, -1)
    stored = to_bytes(maps)
    assert stored.dtype == np.uint8
    np.testing.assert_allclose(stored / 255, maps.clamp(0, 1), atol=0.5 / 255 + 1e-6)


class Fixed(nn.Module):
    """A network of one weight a channel that does not look at its input, but keeps it."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach())
        return self.values.view(1, -1, 1, 1).expand(len(x), -1, x.shape[2] // 4, x.shape[3] // 4)


def test_the_loss_is_the_mean_square_over_channels_and_pixels_absent_ones_as_zeros():
    rgb = np.full((1, 3, 8, 8), 200, np.uint8)
    maps = np.zeros((1, 3, 2, 2), np.uint8)
    maps[0, 1], maps[0, 2] = 255, 102  # the third is nowhere the highest: its target is 0
    network = Fixed(torch.tensor([-0.5, 0.25, 1.5]))
    losses = train_refiner(network, rgb, maps, RefinerTraining(1, 1e-3, batch=2), CPU)
    assert losses == [pytest.approx((0.5**2 + 0.75**2 + 1.5**2) / 3)]


@examples(50)
@given(arrays(np.uint8, (6, 3, 2, 2), elements=st.integers(0, 3)), st.booleans())
def test_a_window_is_of_the_class_that_is_highest_in_most_of_its_cells(maps: np.ndarray, has_background: bool):
    of = {}
    for m in range(6):
        counts = [0] * (3 - has_background)
        for i, j in np.ndindex(2, 2):
            against, classes = (maps[m, 0, i, j], maps[m, 1:, i, j]) if has_background else (0, maps[m, :, i, j])
            if classes.max() > against:
                counts[int(classes.argmax())] += 1
        of[m] = counts.index(max(counts)) if any(counts) else 9
    expected = [[m for m in of if of[m] == kind] for kind in sorted(set(of.values()))]
    assert [pool.tolist() for pool in window_pools(maps, has_background)] == expected


def test_the_few_windows_that_show_a_class_are_seen_as_often_as_all_others():
    rgb = np.zeros((40, 3, 8, 8), np.uint8)
    maps = np.zeros((40, 2, 2, 2), np.uint8)
    maps[:, 0] = 100
    rgb[7], maps[7, 1, 0, 0] = 255, 200
    network = Fixed(torch.zeros(2))
    train_refiner(network, rgb, maps, RefinerTraining(5, 1e-3, batch=8, stain_jitter=0.0), CPU, has_background=True)
    white = torch.cat(network.seen).mean((1, 2, 3)) > 0
    assert len(white) == 40
    assert int(white.sum()) == 20


def test_the_highest_channel_is_found_after_resizing():
    rgb = np.full((1, 3, 8, 8), 200, np.uint8)
    maps = np.zeros((1, 2, 2, 2), np.uint8)
    maps[0, 0, :, 0] = maps[0, 1, :, 1] = 255
    network = Fixed(torch.zeros(2))
    (loss,) = train_refiner(network, rgb, maps, RefinerTraining(1, 1e-3, batch=1), CPU)
    across = np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1)  # of the second channel; the first is its mirror image
    assert loss == pytest.approx(float((np.maximum(across, 1 - across) ** 2).mean()) / 2, rel=1e-5)


def test_a_window_and_its_maps_are_turned_together():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 255, (5, 1, 8, 8), dtype=np.uint8)
    rgb = np.repeat(maps, 3, axis=1)
    seen: list[torch.Tensor] = []

    class Copying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return (x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).mean(1, keepdim=True)[
                :, :1
            ] + self.zero

    no_blur = pytest.MonkeyPatch()
    with no_blur.context() as patch:
        patch.setattr(augment, "blur", lambda x, chance, generator: x)
        losses = train_refiner(Copying(), rgb, maps, RefinerTraining(6, 1e-9, batch=8, stain_jitter=0.0), CPU)
    assert max(losses) < 1e-5
    firsts = {tuple(x[0, 0].ravel().tolist()) for x in seen}
    assert len(firsts) > 3, "not the same window the same way up"


def test_the_network_learns_to_draw_a_map_of_the_image_and_the_same_again():
    rng = np.random.default_rng(0)
    dark = rng.random((24, 1, 4, 4)) < 0.5
    rgb = np.where(dark, np.uint8(90), np.uint8(220)).repeat(4, 2).repeat(4, 3).repeat(3, 1)
    maps = np.concatenate([~dark, dark], 1).astype(np.uint8) * 255

    def learned() -> tuple[nn.Module, list[float]]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
        return network, train_refiner(network, rgb, maps, RefinerTraining(60, 2e-2, stain_jitter=0.1), CPU)

    network, losses = learned()
    assert losses[-1] < 0.2 * losses[0]
    assert not network.training
    again, _ = learned()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())
