"""The one training loop: AdamW, warm-up and cosine decay, batches made ahead, a stop on non-finite numbers."""

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
from wsipipe.nn.training_state import Stateful, TrainingState, Watcher
from wsipipe.runtime.device import ComputeContext, autocast

log = logging.getLogger(__name__)

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn; `lr` is reached after `warmup` (share of steps), then falls to 0 as a cosine."""

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
"""Told the step, its loss, its learning rate, and the seconds that a step takes."""


@dataclass(frozen=True)
class TrainHooks(Generic[B]):
    """What goes on around the steps of a training; all of it may be left out.

    keep: where the state is kept, so that a killed training goes on to the same weights; the caller clears it once the
    result is saved. watch(step): may end the training early. average: follows the weights. record: told every step.
    split(batch, n): n equal parts of a batch, into which one is cut where it does not fit into memory. size: images in
    a batch, for the progress.
    """

    keep: TrainingState | None = None
    watch: Watcher | None = None
    average: WeightEMA | None = None
    record: Record | None = None
    split: Callable[[B, int], Sequence[B]] | None = None
    size: int = 0

    def parts(self) -> dict[str, Stateful]:
        """What has a state of its own."""
        return {k: v for k, v in (("watch", self.watch), ("average", self.average)) if v is not None}


def fit(
    model: nn.Module,
    batch: Callable[[int], B],
    loss: Callable[[B], Tensor],
    schedule: Schedule,
    task: str,
    compute: ComputeContext,
    around: TrainHooks[B] = TrainHooks(),
) -> list[float]:
    """Train the parameters of `model` that want a gradient; returns the loss of every step.

    `batch(step)` must depend on nothing but `step` (it is called ahead, in a thread); `loss(batch)` runs the model
    under mixed precision, its random draws (dropout) being seeded by `compute.seed` and the step. Raises
    CheckpointError when the loss or its gradient is not finite, before the weights are touched: the model then holds
    the last good ones.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)
    on = compute.device
    model.to(on).train()
    parts: dict[str, Stateful] = {"model": model, "optimiser": optimiser, **around.parts()}
    first, losses = around.keep.restore(parts) if around.keep else (0, [])
    clock, descend = Clock(), _Descent(loss, around.split, task, compute)
    for step, item in enumerate(_ahead(batch, first, schedule.steps), first):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        value = descend(item, step, optimiser)
        if not torch.isfinite(nn.utils.clip_grad_norm_(parameters, 5.0)):  # else it would be the weights, silently
            raise CheckpointError(f"{task}: the gradient is not finite at step {step}; try a lower learning rate")
        optimiser.step()
        losses.append(value)
        if around.average:
            around.average.follow(model, step)
        enough = around.watch is not None and around.watch(step)
        done = schedule.steps if enough else step + 1
        if around.keep:
            around.keep.save(done, losses, parts, now=done == schedule.steps)
        seconds = clock.tick()
        if around.record:
            around.record(step, value, schedule.rate(step), seconds)
        compute.progress(task, done, schedule.steps, _note(losses, schedule.rate(step), seconds, around.size))
        if enough:
            break
    model.eval()
    return losses


def _note(losses: Sequence[float], rate: float, seconds: float, size: int) -> str:
    """What a person wants to see beside the progress."""
    recent = losses[-20:]
    speed = f"{size / seconds:.0f} patches/s" if size else f"{seconds:.2f} s a step"
    return f"loss {sum(recent) / len(recent):.3f}, rate {rate:.1e}, {speed}"


class _Descent(Generic[B]):
    """Loss and gradient of a batch, in as many parts as the memory asks for."""

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
        """The loss of the batch; its gradient is left in the parameters."""
        while True:
            try:
                optimiser.zero_grad(set_to_none=True)
                whole = [item] if self._parts == 1 or self._split is None else self._split(item, self._parts)
                return sum(self._back(part, step, len(whole)) for part in whole)
            except torch.OutOfMemoryError:
                if self._split is None or len(self._split(item, 2 * self._parts)) <= self._parts:
                    raise CheckpointError(
                        f"{self._task}: not even one image fits into the memory of {self._compute.device}; "
                        "choose a smaller network or smaller patches"
                    ) from None
                self._parts *= 2
                log.warning("%s: a batch does not fit into memory; taken in %d parts", self._task, self._parts)

    def _back(self, part: B, step: int, parts: int) -> float:
        on = self._compute.device
        with seeded(on, self._compute.seed, step), autocast(on):
            value = self._loss(part)
        if not torch.isfinite(value):
            raise CheckpointError(f"{self._task}: the loss is {value.item()} at step {step}; try a lower learning rate")
        (value / parts).backward()  # type: ignore[no-untyped-call]
        return float(value.detach()) / parts


class Clock:
    """Seconds that a step takes, averaged over the steps so far."""

    def __init__(self) -> None:
        self._start, self._ticks = time.monotonic(), 0

    def tick(self) -> float:
        """One more step is done: the seconds each took."""
        self._ticks += 1
        return (time.monotonic() - self._start) / self._ticks


@contextmanager
def seeded(on: torch.device, *parts: int) -> Iterator[None]:
    """The global generators seeded by a few integers inside the block, as they were after it."""
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        torch.manual_seed(_mixed(*parts))
        yield


def seeded_init(make: Callable[[], M], seed: int) -> M:
    """A network that `make` makes, its first weights depending on nothing but the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _ahead(batch: Callable[[int], B], first: int, steps: int, depth: int = 2) -> Iterator[B]:
    """batch(first), batch(first + 1), .., before `steps`, made up to `depth` steps ahead in one thread."""
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
