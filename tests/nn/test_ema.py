"""The running average: its formula, buffers too, and frozen copies that stay as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsipipe.nn.ema import DECAY, WeightEMA


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_it_is_the_exponential_average_of_all_that_came() -> None:
    model = network()
    average = WeightEMA(model)
    expected = model[0].weight.detach().double().clone()
    for step in range(30):
        with torch.no_grad():
            model[0].weight += torch.randn(model[0].weight.shape, generator=torch.Generator().manual_seed(step))
        average.follow(model, step)
        decay = min(DECAY, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    torch.testing.assert_close(average.model[0].weight.double(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(average.model[0].weight, model[0].weight)


def test_statistics_of_normalisation_are_averaged_and_counts_are_taken_over() -> None:
    model = network().train()
    average = WeightEMA(model)
    model(torch.randn(4, 1, 8, 8) + 5)
    average.follow(model, 0)
    torch.testing.assert_close(average.model[1].running_mean, model[1].running_mean * 0.9)
    assert average.model[1].num_batches_tracked == 1
    assert not average.model.training


def test_the_model_is_left_alone_and_the_average_wants_no_gradient() -> None:
    model = network().train()
    average = WeightEMA(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    average.follow(model, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not any(p.requires_grad for p in average.model.parameters())


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4])
def test_a_teacher_is_frozen_after_its_step_and_all_goes_on_from_its_state(stop: int) -> None:
    def moved(model: nn.Module, step: int) -> None:
        with torch.no_grad():
            model[0].weight += step + 1

    def run(average: WeightEMA, model: nn.Module, steps: range) -> None:
        for step in steps:
            moved(model, step)
            average.follow(model, step)

    model = network()
    average = WeightEMA(model, {1, 3})
    assert average.teacher is None
    run(average, model, range(5))
    assert not torch.equal(average.teacher[0].weight, average.model[0].weight)

    other = network()
    cut = WeightEMA(other, {1, 3})
    run(cut, other, range(stop))
    assert (cut.teacher is None) == (stop < 2)
    again = WeightEMA(other, {1, 3})
    again.load_state_dict(cut.state_dict())
    run(again, other, range(stop, 5))
    for a, b in ((again.model, average.model), (again.teacher, average.teacher)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
