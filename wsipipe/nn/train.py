"""The one training loop: AdamW, warm-up and cosine decay, batches made ahead, a stop on non-finite numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from wsipipe.errors import CheckpointError
from wsipipe.nn.keep import Keep, Stateful, Watcher
from wsipipe.runtime import Compute, autocast

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


def fit(
    model: nn.Module,
    batch: Callable[[int], B],
    loss: Callable[[B], Tensor],
    schedule: Schedule,
    task: str,
    compute: Compute,
    *,
    keep: Keep | None = None,
    watch: Watcher | None = None,
) -> list[float]:
    """Train the parameters of `model` that want a gradient; returns the loss of every step.

    `batch(step)` must depend on nothing but `step` (it is called ahead, in a thread); `loss(batch)` runs the model
    under mixed precision, its random draws (dropout) being seeded by `compute.seed` and the step. With `keep`, a
    killed training goes on where it was last kept, to the same weights; the caller clears it once the result is saved.
    `watch(step)` may end the training early. Raises CheckpointError when the loss or its gradient is not finite,
    before the weights are touched; the caller's last saved weights stand.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)
    on = compute.device
    model.to(on).train()
    parts: dict[str, Stateful] = {"model": model, "optimiser": optimiser, **({"watch": watch} if watch else {})}
    first, losses = keep.restore(parts) if keep else (0, [])
    clock = Clock()
    for step, item in enumerate(_ahead(batch, first, schedule.steps), first):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        with seeded(on, compute.seed, step), autocast(on):
            value = loss(item)
        if not torch.isfinite(value):
            raise CheckpointError(f"{task}: the loss is {value.item()} at step {step}; try a lower learning rate")
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(nn.utils.clip_grad_norm_(parameters, 5.0)):  # else it would be the weights, silently
            raise CheckpointError(f"{task}: the gradient is not finite at step {step}; try a lower learning rate")
        optimiser.step()
        losses.append(float(value.detach()))
        enough = watch is not None and watch(step)
        done = schedule.steps if enough else step + 1
        if keep:
            keep.save(done, losses, parts, now=done == schedule.steps)
        recent = losses[-20:]
        note = f"loss {sum(recent) / len(recent):.3f}, {clock.tick():.2f} s a step"
        compute.progress(task, done, schedule.steps, note)
        if enough:
            break
    model.eval()
    return losses


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


def fresh(make: Callable[[], M], seed: int) -> M:
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
