"""How many examples a property test draws, and from which seed.

Three profiles of hypothesis, chosen with `--hypothesis-profile`:

- `same` (the default): the same examples on every machine;
- `fresh`: a fifth as many, drawn anew in each run; one that fails is kept in `.hypothesis/` and replayed;
- `deep`: fifty times as many, drawn anew.

None of them depends on the variable CI, which hypothesis looks at by itself.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

USUAL = 100
"""Examples of a property test that asks for no number, as in hypothesis itself."""

FEWEST = 3
"""Examples of any test: the first that hypothesis draws is always the simplest one."""

SHARE = {"same": 1.0, "fresh": 0.2, "deep": 50.0}
"""Examples of each profile, as a multiple of what a test asks for."""

UNCHECKED = (HealthCheck.too_slow, HealthCheck.differing_executors)
"""What depends on the speed of the machine, or on how pytest runs a test: no failure."""


def register() -> None:
    """Register the profiles; `same` is in force unless another is asked for."""
    for name, share in SHARE.items():
        settings.register_profile(
            name,
            settings.get_profile("default"),  # with its database of failed examples; the profile "ci" has none
            max_examples=round(USUAL * share),
            derandomize=name == "same",
            deadline=None,  # a busy machine is no failure
            print_blob=True,  # a failure can be replayed elsewhere
            suppress_health_check=UNCHECKED,
        )
    settings.load_profile("same")


def examples(count: int, *unchecked: HealthCheck) -> settings:
    """A decorator for tests whose examples are dear: `count` in the profile `same`, in proportion in the others.

    `unchecked`: health checks of hypothesis that the test is exempt from.
    """
    number = max(min(count, FEWEST), round(count * settings().max_examples / USUAL))
    return settings(max_examples=number, suppress_health_check=(*UNCHECKED, *unchecked))
