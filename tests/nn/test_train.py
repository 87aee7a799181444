"""The training loop: it learns, by its schedule, the same for the same seed, and stops on nonsense."""

from __future__ import annotations

import math
import re
import threading
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wsipipe.errors import CheckpointError
from wsipipe.nn.train import Schedule, TrainHooks, fit, generator
from wsipipe.runtime.device import ComputeContext

CPU = ComputeContext(torch.device("cpu"))


def line(step: int) -> tuple[Tensor, Tensor]:
    """Points of y = 2 x + 1."""
    x = torch.randn(16, 1, generator=generator(0, step))
    return x, 2 * x + 1


def trained(seed: int, steps: int = 60) -> tuple[nn.Linear, list[float]]:
    torch.manual_seed(seed)
    model = nn.Linear(1, 1)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]).float(), batch[1])

    return model, fit(model, line, loss, Schedule(steps, 0.1), "toy", CPU)


def test_training_lowers_the_loss_and_finds_the_line() -> None:
    model, losses = trained(0, 150)
    assert len(losses) == 150
    assert sum(losses[-10:]) < 0.05 * sum(losses[:10])
    assert float(model.weight.detach()) == pytest.approx(2, abs=0.2)
    assert float(model.bias.detach()) == pytest.approx(1, abs=0.2)


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    (first, losses), (again, losses_again), (other, _) = trained(3), trained(3), trained(4)
    assert losses == losses_again
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_the_model_trains_in_training_mode_and_comes_back_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)).eval()
    seen = []

    def loss(batch: Tensor) -> Tensor:
        seen.append(model.training)
        return model(batch).square().mean()

    fit(model, lambda step: torch.ones(2, 1), loss, Schedule(3, 0.1), "toy", CPU)
    assert seen == [True] * 3
    assert not model.training


def test_each_batch_is_made_once_and_in_order_and_reaches_the_loss_in_order() -> None:
    model = nn.Linear(1, 1)
    made, used, threads = [], [], set()

    def batch(step: int) -> int:
        made.append(step)
        threads.add(threading.get_ident())
        return step

    def loss(item: int) -> Tensor:
        used.append(item)
        time.sleep(0.002)
        return model(torch.ones(1, 1)).square().mean()

    fit(model, batch, loss, Schedule(12, 0.1), "toy", CPU)
    assert made == list(range(12))
    assert used == list(range(12))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_no_step_means_no_batch_and_no_change() -> None:
    model = nn.Linear(1, 1)
    before = model.weight.clone()
    assert fit(model, lambda step: 1 / 0, lambda b: torch.zeros(()), Schedule(0, 0.1), "toy", CPU) == []
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_task_and_step_and_changes_no_weight(bad: float) -> None:
    model = nn.Linear(1, 1)
    history = []

    def loss(step: int) -> Tensor:
        history.append(model.weight.detach().clone())
        return model(torch.ones(1, 1)).square().mean() * (bad if step == 4 else 1.0)

    with pytest.raises(CheckpointError, match=r"toy: the loss is (nan|inf) at step 4; try a lower learning rate"):
        fit(model, lambda step: step, loss, Schedule(9, 0.1), "toy", CPU)
    assert torch.equal(model.weight, history[-1])


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights() -> None:
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()

    def loss(step: int) -> Tensor:
        return torch.where(torch.tensor(True), model.weight.sum() * 0 + 1, model.weight.sum() / 0)

    with pytest.raises(CheckpointError, match="toy: the gradient is not finite at step 0"):
        fit(model, lambda step: step, loss, Schedule(1, 0.1), "toy", CPU)
    assert torch.equal(model.weight, before)


def test_an_error_in_a_batch_reaches_the_caller() -> None:
    def batch(step: int) -> Tensor:
        if step == 3:
            raise OSError("disk gone")
        return torch.ones(1, 1)

    model = nn.Linear(1, 1)
    with pytest.raises(OSError, match="disk gone"):
        fit(model, batch, lambda x: model(x).square().mean(), Schedule(9, 0.1), "toy", CPU)


def test_parameters_that_want_no_gradient_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[1].weight.clone()
    fit(model, lambda s: torch.ones(2, 1), lambda x: (model(x) - 5).square().mean(), Schedule(5, 0.1), "toy", CPU)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[1].weight, free)


def test_a_huge_gradient_is_clipped_so_that_the_step_stays_small() -> None:
    model = nn.Linear(1, 1, bias=False)
    start = float(model.weight.detach())
    fit(model, lambda s: s, lambda s: 1e12 * model(torch.ones(1, 1)).mean(), Schedule(1, 0.01, 0.0), "toy", CPU)
    assert abs(float(model.weight.detach()) - start) < 0.011


def test_progress_is_told_after_every_step() -> None:
    heard: list[tuple[str, int, int, str]] = []
    compute = ComputeContext(torch.device("cpu"), 0, lambda *a: heard.append(a))
    model = nn.Linear(1, 1)
    fit(model, lambda s: s, lambda s: model(torch.ones(1, 1)).square().mean(), Schedule(3, 0.1), "toy", compute)
    assert [h[:3] for h in heard] == [("toy", i, 3) for i in (1, 2, 3)]
    assert all(h[3].startswith("loss ") for h in heard)


def test_the_rate_of_every_step_reaches_the_optimiser() -> None:
    """Adam's first moments are constant for a constant gradient, so each step moves by its rate."""
    model = nn.Linear(1, 1, bias=False)
    places = []

    def loss(step: int) -> Tensor:
        places.append(float(model.weight.detach()))
        return model(torch.ones(1, 1)).mean()

    schedule = Schedule(20, 0.1, weight_decay=0.0, warmup=0.25)
    fit(model, lambda s: s, loss, schedule, "toy", CPU)
    places.append(float(model.weight.detach()))
    moves = [a - b for a, b in pairwise(places)]
    assert moves == pytest.approx([schedule.rate(s) for s in range(20)], rel=1e-3, abs=1e-6)


def test_the_rate_rises_in_a_line_then_falls_as_a_cosine_towards_zero() -> None:
    s = Schedule(100, 1.0, warmup=0.1)
    assert [s.rate(i) for i in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert s.rate(10) == 1.0
    assert s.rate(55) == pytest.approx(0.5)
    assert s.rate(99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert s.rate(99) < 1e-3
    assert s.rate(100) == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 400), st.floats(0, 1), st.floats(1e-6, 1))
def test_the_rate_stays_between_zero_and_its_peak_and_has_one_peak(steps: int, warmup: float, lr: float) -> None:
    rates = [Schedule(steps, lr, warmup=warmup).rate(i) for i in range(steps)]
    assert all(0 < r <= lr * (1 + 1e-12) for r in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(lr)


# torch keeps 32 bits of a seed, so that some sequences must share one: those of these numbers do not
PARTS = st.lists(st.integers(0, 6) | st.integers(999_995, 1_000_000), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_generators_are_alike_only_for_the_same_integers(a: list[int], b: list[int]) -> None:
    def first(parts: list[int]) -> list[float]:
        return torch.rand(4, generator=generator(*parts)).tolist()

    assert (first(a) == first(b)) == (a == b)


@pytest.mark.parametrize(("fits", "parts"), [(8, 1), (4, 2), (3, 4), (1, 8)])
def test_a_batch_that_does_not_fit_into_memory_is_taken_in_parts_with_the_same_gradient(fits: int, parts: int) -> None:
    sizes = []

    def loss(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        if len(batch) > fits:
            raise torch.OutOfMemoryError("too much")
        return model(batch).square().mean()

    def batch(step: int) -> Tensor:
        return torch.randn(8, 1, generator=generator(0, step))

    def split(whole: Tensor, n: int) -> list[Tensor]:
        return list(whole.split(-(-len(whole) // n)))

    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    losses = fit(model, batch, loss, Schedule(3, 0.1), "toy", CPU, TrainHooks(split=split))
    assert sizes[-parts:] == [8 // parts] * parts, "the parts stay as small as they had to become"
    fits, small = 8, model
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    assert losses == pytest.approx(fit(model, batch, loss, Schedule(3, 0.1), "toy", CPU), rel=1e-5)
    torch.testing.assert_close(small.weight, model.weight)


def test_where_not_even_one_image_fits_the_error_says_so() -> None:
    def loss(batch: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("too much")

    def split(whole: Tensor, n: int) -> list[Tensor]:
        return list(whole.split(-(-len(whole) // n)))

    with pytest.raises(
        CheckpointError, match="toy: a single image does not fit into the memory of cpu; choose a smaller"
    ):
        fit(
            nn.Linear(1, 1), lambda step: torch.zeros(4, 1), loss, Schedule(1, 0.1), "toy", CPU, TrainHooks(split=split)
        )


def test_the_progress_says_loss_rate_and_speed() -> None:
    notes = []
    compute = ComputeContext(torch.device("cpu"), 0, lambda task, done, total, note="": notes.append(note))
    model = nn.Linear(1, 1)
    seen = []
    around = TrainHooks(record=lambda *told: seen.append(told), size=16)
    fit(model, line, lambda b: model(b[0]).sum() * 0 + 0.5, Schedule(3, 0.1), "toy", compute, around)
    assert all(re.fullmatch(r"loss 0\.500, rate \d\.\de-\d\d, \d+ patches/s", n) for n in notes), notes
    assert [(step, loss) for step, loss, _, _ in seen] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert [rate for _, _, rate, _ in seen] == [Schedule(3, 0.1).rate(s) for s in range(3)]
