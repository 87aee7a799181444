"""The one training loop: AdamW, warm-up and cosine decay, batches prepared ahead, an error on non-finite numbers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from wsipipe.errors import CheckpointError
from wsipipe.nn.ema import WeightEMA
from wsipipe.nn.training_state import Stateful, StepMonitor, TrainingState
from wsipipe.runtime.device import ComputeContext, autocast

log = logging.getLogger(__name__)

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rate: `lr` is reached after `warmup` (fraction of steps), then decays to 0 as a cosine."""

    steps: int
    lr: float
    weight_decay: float = 1e-4
    warmup: float = 0.1

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        rising = max(1, int(self.steps * self.warmup))
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


Record = Callable[[int, float, float, float], None]
"""Called with the step, its loss, its learning rate, and the seconds per step."""


@dataclass(frozen=True)
class TrainHooks(Generic[B]):
    """Optional hooks of a training.

    state: where the state is saved, so that a killed training resumes to the same weights; the caller clears it once
    the result is saved. monitor(step): may stop the training early. average: follows the weights. record: called after
    every step. split(batch, n): cuts a batch into n equal parts, used where it does not fit into memory. size: images
    per batch, for the progress.
    """

    state: TrainingState | None = None
    monitor: StepMonitor | None = None
    average: WeightEMA | None = None
    record: Record | None = None
    split: Callable[[B, int], Sequence[B]] | None = None
    size: int = 0

    def parts(self) -> dict[str, Stateful]:
        """The hooks whose state is saved."""
        return {k: v for k, v in (("monitor", self.monitor), ("average", self.average)) if v is not None}


def fit(
    model: nn.Module,
    batch: Callable[[int], B],
    loss: Callable[[B], Tensor],
    schedule: Schedule,
    task: str,
    compute: ComputeContext,
    hooks: TrainHooks[B] = TrainHooks(),
) -> list[float]:
    """Train the parameters of `model` that require a gradient; returns the loss of every step.

    `batch(step)` must depend on nothing but `step` (it is called ahead, in a thread); `loss(batch)` runs the model
    under mixed precision, its random draws (dropout) seeded by `compute.seed` and the step. Raises CheckpointError when
    the loss or its gradient is not finite, before the weights change: the model then holds the last good ones.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)
    on = compute.device
    model.to(on).train()
    parts: dict[str, Stateful] = {"model": model, "optimiser": optimiser, **hooks.parts()}
    first, losses = hooks.state.restore(parts) if hooks.state else (0, [])
    clock, descend = Clock(), _Descent(loss, hooks.split, task, compute)
    for step, item in enumerate(_ahead(batch, first, schedule.steps), first):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        value = descend(item, step, optimiser)
        if not torch.isfinite(nn.utils.clip_grad_norm_(parameters, 5.0)):  # before the weights are
            raise CheckpointError(f"{task}: the gradient is not finite at step {step}; try a lower learning rate")
        optimiser.step()
        losses.append(value)
        if hooks.average:
            hooks.average.follow(model, step)
        stop = hooks.monitor is not None and hooks.monitor(step)
        done = schedule.steps if stop else step + 1
        if hooks.state:
            hooks.state.save(done, losses, parts, now=done == schedule.steps)
        seconds = clock.tick()
        if hooks.record:
            hooks.record(step, value, schedule.rate(step), seconds)
        compute.progress(task, done, schedule.steps, _note(losses, schedule.rate(step), seconds, hooks.size))
        if stop:
            break
    model.eval()
    return losses


def _note(losses: Sequence[float], rate: float, seconds: float, size: int) -> str:
    """The note beside the progress bar."""
    recent = losses[-20:]
    speed = f"{size / seconds:.0f} patches/s" if size else f"{seconds:.2f} s/step"
    return f"loss {sum(recent) / len(recent):.3f}, rate {rate:.1e}, {speed}"


class _Descent(Generic[B]):
    """Loss and gradient of a batch, cut into as many parts as fit into memory."""

    def __init__(
        self,
        loss: Callable[[B], Tensor],
        split: Callable[[B, int], Sequence[B]] | None,
        task: str,
        compute: ComputeContext,
    ) -> None:
        self._loss, self._split, self._task, self._compute = loss, split, task, compute
        self._parts = 1

    def __call__(self, item: B, step: int, optimiser: torch.optim.Optimizer) -> float:
        """The loss of the batch; its gradient is accumulated in the parameters."""
        while True:
            try:
                optimiser.zero_grad(set_to_none=True)
                whole = [item] if self._parts == 1 or self._split is None else self._split(item, self._parts)
                return sum(self._back(part, step, len(whole)) for part in whole)
            except torch.OutOfMemoryError:
                if self._split is None or len(self._split(item, 2 * self._parts)) <= self._parts:
                    raise CheckpointError(
                        f"{self._task}: a single image does not fit into the memory of {self._compute.device}; "
                        "choose a smaller network or smaller patches"
                    ) from None
                self._parts *= 2
                log.warning("%s: a batch does not fit into memory; it is cut into %d parts", self._task, self._parts)

    def _back(self, part: B, step: int, parts: int) -> float:
        on = self._compute.device
        with seeded(on, self._compute.seed, step), autocast(on):
            value = self._loss(part)
        if not torch.isfinite(value):
            raise CheckpointError(f"{self._task}: the loss is {value.item()} at step {step}; try a lower learning rate")
        (value / parts).backward()  # type: ignore[no-untyped-call]
        return float(value.detach()) / parts


class Clock:
    """Seconds per step, averaged over the steps so far."""

    def __init__(self) -> None:
        self._start, self._ticks = time.monotonic(), 0

    def tick(self) -> float:
        """Count one more step; returns the seconds per step."""
        self._ticks += 1
        return (time.monotonic() - self._start) / self._ticks


@contextmanager
def seeded(on: torch.device, *parts: int) -> Iterator[None]:
    """Seed the global generators with a few integers inside the block, and restore them after it."""
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        torch.manual_seed(_mixed(*parts))
        yield


def seeded_init(make: Callable[[], M], seed: int) -> M:
    """The network that `make` returns, with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _ahead(batch: Callable[[int], B], first: int, steps: int, depth: int = 2) -> Iterator[B]:
    """batch(first), batch(first + 1), .., before `steps`, prepared up to `depth` steps ahead in one thread."""
    with ThreadPoolExecutor(1) as pool:
        queue = [pool.submit(batch, s) for s in range(first, min(first + depth, steps))]
        try:
            for step in range(first, steps):
                item = queue.pop(0).result()
                if step + depth < steps:
                    queue.append(pool.submit(batch, step + depth))
                yield item
        finally:
            for future in queue:
                future.cancel()


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by a few integers, such as (seed, stage, step)."""
    return torch.Generator().manual_seed(_mixed(*parts))


def _mixed(*parts: int) -> int:
    seed = 0
    for p in parts:
        seed = (seed * 1_000_003 + p + 0x9E3779B9) % (2**63)
    return seed
