"""The state of a training: kept in whole files, and a stopped training goes on to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsipipe.errors import CheckpointError
from wsipipe.nn.train import Schedule, TrainHooks, fit, generator
from wsipipe.nn.training_state import TrainingState
from wsipipe.runtime.device import ComputeContext
from wsipipe.runtime.progress import silent


def network() -> nn.Module:
    """Batch statistics, dropout and a frozen layer: all that a step may change or draw."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    model[4].requires_grad_(False)
    return model


def batch(step: int) -> Tensor:
    return torch.randn(8, 4, generator=generator(7, step))


def train(
    keep: TrainingState | None, progress: Any = silent, watch: Any = None, steps: int = 8
) -> tuple[nn.Module, list]:
    model = network()
    compute = ComputeContext(torch.device("cpu"), 0, progress)
    losses = fit(
        model,
        batch,
        lambda x: (model(x) - 3).square().mean(),
        Schedule(steps, 0.05),
        "toy",
        compute,
        TrainHooks(keep, watch),
    )
    return model, losses


def stopped_after(step: int) -> Any:
    def progress(task: str, done: int, total: int, note: str = "") -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def assert_alike(a: nn.Module, b: nn.Module) -> None:
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), key


@pytest.mark.parametrize("every_s", [0.0, 1e9])
@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_stopped_training_goes_on_to_the_same_bits_whatever_was_kept(
    tmp_path: Path, step: int, every_s: float
) -> None:
    whole, losses = train(None)
    keep = TrainingState(tmp_path / "deep" / "state", "k", every_s)
    with pytest.raises(KeyboardInterrupt):
        train(keep, stopped_after(step))
    assert (tmp_path / "deep" / "state").exists() == (every_s == 0 or step == 8)
    torch.manual_seed(99)  # the global generator must not matter
    again, losses_again = train(TrainingState(keep.path, "k", every_s))
    assert losses_again == losses
    assert_alike(again, whole)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["state"]


def test_steps_that_are_kept_are_not_made_again(tmp_path: Path) -> None:
    keep = TrainingState(tmp_path / "state", "k", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(keep, stopped_after(5))
    seen: list[int] = []
    train(keep, lambda task, done, total, note="": seen.append(done))
    assert seen == [6, 7, 8]


def test_a_finished_training_is_not_repeated_until_its_state_is_cleared(tmp_path: Path) -> None:
    keep = TrainingState(tmp_path / "state", "k")
    first, losses = train(keep)
    again, losses_again = train(keep, stopped_after(1))
    assert losses_again == losses
    assert_alike(first, again)
    keep.clear()
    keep.clear()
    with pytest.raises(KeyboardInterrupt):
        train(keep, stopped_after(1))


def test_the_state_of_another_key_is_left_aside(tmp_path: Path) -> None:
    train(TrainingState(tmp_path / "state", "other"), steps=3)
    whole, _ = train(None)
    other, _ = train(TrainingState(tmp_path / "state", "k"))
    assert_alike(other, whole)


@pytest.mark.parametrize("damage", [b"", b"not a state", None])
def test_a_damaged_state_costs_time_but_not_the_training(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    keep = TrainingState(path, "k", 0.0)
    train(keep)
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    again, _ = train(keep)
    assert_alike(again, train(None)[0])
    assert "cannot be read" in caplog.text
    assert "training starts from the first step" in caplog.text


class Counter:
    """Stops after so many looks in all."""

    def __init__(self, limit: int) -> None:
        self.limit, self.looks = limit, 0

    def __call__(self, step: int) -> bool:
        self.looks += 1
        return self.looks >= self.limit

    def state_dict(self) -> dict[str, Any]:
        return {"looks": self.looks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.looks = state_dict["looks"]


def test_a_watcher_may_end_the_training_and_remembers_over_a_stop(tmp_path: Path) -> None:
    told: list[int] = []
    whole, losses = train(None, lambda task, done, total, note="": told.append(done), Counter(5))
    assert len(losses) == 5
    assert told == [1, 2, 3, 4, 8], "the bar does not end"
    keep = TrainingState(tmp_path / "state", "k", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(keep, stopped_after(2), Counter(5))
    again, losses_again = train(keep, watch=Counter(5))
    assert losses_again == losses
    assert_alike(again, whole)


def test_a_training_ended_by_its_watcher_is_kept_as_ended(tmp_path: Path) -> None:
    keep = TrainingState(tmp_path / "state", "k")
    _, losses = train(keep, watch=Counter(3))
    assert keep.path.exists()
    assert len(losses) == 3
    assert len(train(keep, watch=Counter(3))[1]) == 3


def test_nonsense_leaves_the_last_good_state(tmp_path: Path) -> None:
    keep = TrainingState(tmp_path / "state", "k", 0.0)
    model = network()

    def loss(x: Tensor) -> Tensor:
        return model(x).square().mean() * float("nan" if torch.equal(x, batch(3)) else 1)

    with pytest.raises(CheckpointError, match="the loss is nan at step 3"):
        fit(model, batch, loss, Schedule(8, 0.05), "toy", ComputeContext(torch.device("cpu")), TrainHooks(keep))
    state = torch.load(keep.path, weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(v.float()).all() for v in state["model"].values())
