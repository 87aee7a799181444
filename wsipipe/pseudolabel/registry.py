"""Which methods and refinements there are: the modules of `methods/` and `refine/`. Light enough for `--help`."""

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


def method_names() -> list[str]:
    """Names of the methods, without importing any."""
    return _module_names(methods_folder)


def refinement_names() -> list[str]:
    """Names of the refinements, without importing any."""
    return _module_names(refine_folder)


def parse_methods(text: str) -> list[str]:
    """The methods that a text names: one, several as a,b, or all; ConfigError lists the known ones."""
    known = method_names()
    wanted = known if text == ALL else [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"method {name!r} is not known; choose from {', '.join(known)}, or {ALL}")
    return list(dict.fromkeys(wanted))


def load_method(name: str) -> Method:
    """The module of a method; ConfigError lists the known ones."""
    return cast("Method", _load(methods_folder, name, "method"))


def load_refinement(name: str) -> Refinement | None:
    """The module of a refinement, None for `none`; ConfigError lists the known ones."""
    return None if name == NONE else cast("Refinement", _load(refine_folder, name, "refinement", NONE))


def _module_names(folder: ModuleType) -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(folder.__path__))


def _load(folder: ModuleType, name: str, kind: str, *others: str) -> ModuleType:
    known = _module_names(folder)
    if name not in known:
        raise ConfigError(f"{kind} {name!r} is not known; choose one of {', '.join((*known, *others))}")
    return importlib.import_module(f"{folder.__name__}.{name}")
