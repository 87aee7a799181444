"""The state of a running training on disk, so that a killed training resumes to the same weights."""

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
"""Seconds between two saves of the training state."""


class Stateful(Protocol):
    """Anything whose state can be saved by torch's convention: models, optimisers, monitors."""

    def state_dict(self) -> dict[str, Any]:
        """All it needs to resume, as tensors, numbers, strings, lists and mappings."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Resume from that state."""
        ...


class StepMonitor(Stateful, Protocol):
    """Checks a training after every step and decides when to stop; its state is saved with the rest."""

    def __call__(self, step: int) -> bool:
        """Whether to stop after `step` (0, 1, ..)."""
        ...


@dataclass
class TrainingState:
    """Where the state of one training is saved, and how often.

    path: the file. key: digest of all that the training depends on; a file with another key belongs to another training
    and is replaced. every_s: seconds between two saves (0: after every step). writes: false in processes that only
    resume from what another process saves.
    """

    path: Path
    key: str
    every_s: float = KEEP_S
    writes: bool = True
    _written: float = field(default_factory=time.monotonic, repr=False)

    def restore(self, parts: dict[str, Stateful]) -> tuple[int, list[float]]:
        """Load the saved state into `parts`; returns the steps done and their losses, (0, []) if nothing is saved."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["key"] != self.key:
                return 0, []
        except FileNotFoundError:
            return 0, []
        except Exception as error:  # noqa: BLE001 - damage of any kind costs time, never the training
            log.warning("%s: cannot be read (%s); training starts from the first step", self.path, error)
            return 0, []
        for name, part in parts.items():
            part.load_state_dict(state[name])
        log.info("%s: resuming at step %d", self.path, state["step"])
        return int(state["step"]), list(state["losses"])

    def save(self, step: int, losses: list[float], parts: dict[str, Stateful], now: bool = False) -> None:
        """Save the state after `step` steps, atomically, if the interval is over (or `now`)."""
        if not self.writes or (not now and time.monotonic() - self._written < self.every_s):
            return
        states = {name: part.state_dict() for name, part in parts.items()}
        with replacing(self.path) as partial:
            torch.save({"key": self.key, "step": step, "losses": losses, **states}, partial)
        self._written = time.monotonic()

    def clear(self) -> None:
        """Remove the file, once the training has ended and its result is saved."""
        self.path.unlink(missing_ok=True)
