"""Exponential moving average of a network's weights, and frozen copies of it that serve as teachers."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

DECAY = 0.999
"""Decay of the average after many steps (Tarvainen & Valpola, NeurIPS 2017: 0.999)."""


class WeightEMA:
    """Exponential moving average of weights and buffers.

    w' <- d w' + (1 - d) w after step t, with d = min(DECAY, (1 + t) / (10 + t)): early weights fade quickly. After
    each step in `frozen_after` the average is copied into `teacher`, which is None before.
    """

    def __init__(self, model: nn.Module, frozen_after: Collection[int] = ()) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.teacher: nn.Module | None = None
        self._frozen_after = set(frozen_after)

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights of `model` after `step` (0, 1, ..)."""
        decay = min(DECAY, (1 + step) / (10 + step))
        for own, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.lerp_(new.to(own.device), 1 - decay)
            else:  # a count
                own.copy_(new)
        if step in self._frozen_after:
            self.teacher = copy.deepcopy(self.model)

    def state_dict(self) -> dict[str, Any]:
        """The average, and the teacher if there is one."""
        taught = self.teacher.state_dict() if self.teacher else None
        return {"model": self.model.state_dict(), "teacher": taught}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from that state."""
        self.model.load_state_dict(state_dict["model"])
        self.teacher = None
        if state_dict["teacher"] is not None:
            self.teacher = copy.deepcopy(self.model)
            self.teacher.load_state_dict(state_dict["teacher"])
