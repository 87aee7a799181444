"""Which methods there are: the files of `methods/`. Light enough for `--help`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from wsipipe.errors import ConfigError

if TYPE_CHECKING:
    from wsipipe.pseudolabel.method import Method


def names() -> list[str]:
    """Names of the methods; none of them is imported."""
    folder = Path(__file__).with_name("methods")
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]))


def load(name: str) -> Method:
    """The module of a method; ConfigError names those that there are."""
    if name not in names():
        raise ConfigError(f"method {name!r} is not known; choose one of {', '.join(names())}")
    return importlib.import_module(f"wsipipe.pseudolabel.methods.{name}")
