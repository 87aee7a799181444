"""How many examples a property test draws, and from which seed.

Three profiles of hypothesis, chosen with `--hypothesis-profile`:

- `same` (the default): the same examples on every machine;
- `fresh`: a fifth as many, drawn anew in each run; one that fails is kept in `.hypothesis/` and replayed;
- `deep`: fifty times as many, drawn anew.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

USUAL = 100
"""Examples of a property test that asks for no number, as in hypothesis itself."""

SHARE = {"same": 1.0, "fresh": 0.2, "deep": 50.0}
"""Examples of each profile, as a multiple of what a test asks for."""


def register() -> None:
    """Register the profiles; `same` is in force unless another is asked for."""
    for name, share in SHARE.items():
        settings.register_profile(
            name,
            max_examples=round(USUAL * share),
            derandomize=name == "same",
            deadline=None,  # a busy machine is no failure
            print_blob=True,  # a failure can be replayed elsewhere
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
        )
    settings.load_profile("same")


def examples(count: int, **more: Any) -> settings:
    """A decorator for tests whose examples are dear: `count` in the profile `same`, in proportion in the others."""
    return settings(max_examples=max(1, round(count * settings().max_examples / USUAL)), **more)
