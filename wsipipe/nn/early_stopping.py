"""When a training has stopped making progress."""

from __future__ import annotations

from collections.abc import Sequence

LEAST = 0.01
"""A relative change smaller than this is no progress."""

CHECKS = 20
"""Checks in a training of full length."""


def is_flat(losses: Sequence[float], ranks: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` checks made no progress over the checks before them; never if `patience` is 0.

    Progress is a lower loss, or a higher rank (any measure where more is better), than the best before by `LEAST`.
    """
    if not 0 < patience < len(losses):
        return False
    best_loss, best_rank = min(losses[:-patience]), max(ranks[:-patience])
    lower = min(losses[-patience:]) < best_loss - LEAST * abs(best_loss)
    higher = max(ranks[-patience:]) > best_rank * (1 + LEAST)
    return not (lower or higher)
