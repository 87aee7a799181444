"""The state of a training on its way, kept on disk so that a killed one goes on to the same weights."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from wsipipe.runtime.atomic import replacing

log = logging.getLogger(__name__)

KEEP_S = 60.0
"""Seconds between two writings of the state that a killed training goes on from."""


class Stateful(Protocol):
    """What can be kept: models, optimisers and watchers alike, by torch's convention."""

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on, as tensors, numbers, texts, lists and mappings."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Go on from there."""
        ...


class Watcher(Stateful, Protocol):
    """Looks at a training after every step and says when it is enough; what it remembers is kept with the rest."""

    def __call__(self, step: int) -> bool:
        """Whether to stop after `step` (0, 1, ..)."""
        ...


@dataclass
class TrainingState:
    """Where the state of one training is kept, and how often.

    path: the file. key: digest of all that the training depends on; a file of another key is of another training and
    is replaced. every_s: seconds between two writings (0: after every step). writes: false in processes that only go on
    from what another keeps.
    """

    path: Path
    key: str
    every_s: float = KEEP_S
    writes: bool = True
    _written: float = field(default_factory=time.monotonic, repr=False)

    def restore(self, parts: dict[str, Stateful]) -> tuple[int, list[float]]:
        """Load the kept state into `parts`; returns the steps done and their losses, (0, []) if nothing is kept."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["key"] != self.key:
                return 0, []
        except FileNotFoundError:
            return 0, []
        except Exception as error:  # noqa: BLE001 - damage of any kind costs time, never the training
            log.warning("%s: cannot be read (%s); training starts anew", self.path, error)
            return 0, []
        for name, part in parts.items():
            part.load_state_dict(state[name])
        log.info("%s: goes on at step %d", self.path, state["step"])
        return int(state["step"]), list(state["losses"])

    def save(self, step: int, losses: list[float], parts: dict[str, Stateful], now: bool = False) -> None:
        """Write the state after `step` steps, aside and renamed, if it is time (or `now`)."""
        if not self.writes or (not now and time.monotonic() - self._written < self.every_s):
            return
        states = {name: part.state_dict() for name, part in parts.items()}
        with replacing(self.path) as partial:
            torch.save({"key": self.key, "step": step, "losses": losses, **states}, partial)
        self._written = time.monotonic()

    def clear(self) -> None:
        """Remove the file: the training has ended and its result is saved."""
        self.path.unlink(missing_ok=True)
