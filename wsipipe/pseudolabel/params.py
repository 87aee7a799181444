"""What the parameters of methods and refinements share: a name for messages, and checks that quote the value."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from wsipipe.errors import check


class NamedParams:
    """Base of the `Params` of a refinement. NAME is that of its section in pipeline.yaml."""

    NAME: ClassVar[str]

    def check(self, name: str, ok: bool, problem: str) -> None:
        """ConfigError unless `ok`: parameter `name`, its value, then `problem`."""
        check(ok, f"{self.NAME}.{name}: {getattr(self, name)!r} {problem}")

    def check_min(self, least: float, *names: str) -> None:
        """ConfigError for the first of the parameters `names` that is below `least`."""
        for name in names:
            self.check(name, getattr(self, name) >= least, f"is below {least:g}")

    def check_positive(self, *names: str) -> None:
        """ConfigError for the first of the parameters `names` that is not a finite number above 0."""
        for name in names:
            self.check(name, 0 < getattr(self, name) < float("inf"), "is not above 0")

    def check_choice(self, name: str, choices: Collection[Any]) -> None:
        """ConfigError unless parameter `name` is one of `choices`."""
        self.check(name, getattr(self, name) in choices, f"is not one of {', '.join(map(str, choices))}")


class MethodParams(NamedParams):
    """Base of the `Params` of a method.

    min_tissue: least fraction (0..1) of tissue in an instance; instances with less are neither trained on nor scored.
    """

    min_tissue: float = 0.5
