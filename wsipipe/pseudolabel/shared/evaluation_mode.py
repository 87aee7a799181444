"""A network in evaluation mode for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block (fixed statistics, no dropout); afterwards every module is in its old mode."""
    training = [m for m in network.modules() if m.training]
    network.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
