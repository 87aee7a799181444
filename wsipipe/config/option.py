"""One option: a field of a dataclass with what `--help` shows of it."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, help: str, fit: bool = True, group: str = "", metavar: str = "") -> Any:
    """A field with what `--help` shows of it.

    help: one sentence, ending in `; default: ...` where the value "" stands for something else. fit: False for what a
    method uses only once it is fitted. group: the heading that `--help` puts it under. metavar: what stands for the
    value, such as 0..1 or NAME (default: the unit in the name, or N for a whole number).
    """
    return dataclasses.field(default=default, metadata={"help": help, "fit": fit, "group": group, "metavar": metavar})


def fitted_with(params: Any) -> dict[str, Any]:
    """The parameters of a method that its fit depends on."""
    return {f.name: getattr(params, f.name) for f in dataclasses.fields(params) if f.metadata.get("fit", True)}
