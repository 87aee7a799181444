"""Test-time views are turned back to where they came from, and their mean turns with the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsipipe.segment.tta import VIEWS, mean_over_views, turned, turned_back


def by_hand(image: np.ndarray, view: int) -> np.ndarray:
    side = len(image)
    out = np.empty_like(image)
    for y in range(side):
        for x in range(side):
            a, b = (x, y) if view & 4 else (y, x)
            out[y, x] = image[side - 1 - a if view & 2 else a, side - 1 - b if view & 1 else b]
    return out


@pytest.mark.parametrize("view", range(8))
def test_a_view_is_what_its_bits_say_and_its_inverse_undoes_it(view: int) -> None:
    image = np.arange(25.0).reshape(5, 5)
    found = turned(torch.from_numpy(image), view)
    np.testing.assert_array_equal(found.numpy(), by_hand(image, view))
    np.testing.assert_array_equal(turned_back(found, view).numpy(), image)


def test_the_eight_views_differ() -> None:
    image = torch.arange(9).reshape(3, 3)
    assert len({tuple(turned(image, v).flatten().tolist()) for v in range(8)}) == 8


def lopsided() -> nn.Module:
    torch.manual_seed(3)
    return nn.Conv2d(3, 2, 3, padding=1)


@pytest.mark.parametrize("views", VIEWS)
def test_the_mean_turns_with_the_image(views: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        net, x = lopsided(), torch.randn(2, 3, 8, 8)
        p = mean_over_views(net, x, views)
        torch.testing.assert_close(p.sum(1), torch.ones(2, 8, 8))
        for view in range(8):
            again = turned_back(mean_over_views(net, turned(x, view), views), view)
            assert torch.allclose(again, p, atol=1e-6) == (view < views)


def test_the_mean_is_over_probabilities_of_each_view() -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        net, x = lopsided(), torch.randn(1, 3, 6, 6)
        answers = [turned_back(net(turned(x, v)).softmax(1), v) for v in range(4)]
        torch.testing.assert_close(mean_over_views(net, x, 4), torch.stack(answers).mean(0))
        torch.testing.assert_close(mean_over_views(net, x, 1), net(x).softmax(1))


def test_networks_get_channels_last_images_and_other_numbers_are_refused() -> None:
    def network(x: Tensor) -> Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        return x

    mean_over_views(network, torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), 8)
    with pytest.raises(ValueError, match="3 views; expected one of 1, 2, 4, 8"):
        mean_over_views(network, torch.zeros(2, 3, 8, 8), 3)
