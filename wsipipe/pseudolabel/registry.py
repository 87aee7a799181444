"""Which methods and refinements there are: the files of `methods/` and `refine/`. Light enough for `--help`."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, cast

import wsipipe.pseudolabel.methods as methods_folder
import wsipipe.pseudolabel.refine as refine_folder
from wsipipe.errors import ConfigError

if TYPE_CHECKING:
    from wsipipe.pseudolabel.method import Method
    from wsipipe.pseudolabel.refinement import Refinement

NONE = "none"
"""The choice of no refinement."""

ALL = "all"
"""The choice of every method."""


def names() -> list[str]:
    """Names of the methods; none of them is imported."""
    return _modules(methods_folder)


def refinements() -> list[str]:
    """Names of the refinements; none of them is imported."""
    return _modules(refine_folder)


def chosen(text: str) -> list[str]:
    """The methods that a text names: one, several as a,b, or all; ConfigError names those that there are."""
    wanted = names() if text == ALL else [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in names():
            raise ConfigError(f"method {name!r} is not known; choose of {', '.join(names())}, or {ALL}")
    return list(dict.fromkeys(wanted))


def load(name: str) -> Method:
    """The module of a method; ConfigError names those that there are."""
    return cast("Method", _load(methods_folder, name, "method"))


def load_refinement(name: str) -> Refinement | None:
    """The module of a refinement, None for `none`; ConfigError names those that there are."""
    return None if name == NONE else cast("Refinement", _load(refine_folder, name, "refinement", NONE))


def _modules(folder: ModuleType) -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(folder.__path__))


def _load(folder: ModuleType, name: str, what: str, *besides: str) -> ModuleType:
    if name not in _modules(folder):
        known = ", ".join((*_modules(folder), *besides))
        raise ConfigError(f"{what} {name!r} is not known; choose one of {known}")
    return importlib.import_module(f"{folder.__name__}.{name}")
