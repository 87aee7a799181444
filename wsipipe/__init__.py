"""wsipipe: weak labels on whole-slide images in, pixel maps out.

The names below are the public interface; each is imported when it is first used, so that `import wsipipe` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Patches": "wsipipe.dataset",
    "Settings": "wsipipe.pipeline",
    "SlideStore": "wsipipe.store",
    "StageResult": "wsipipe.api",
    "Window": "wsipipe.geometry",
    "WsipipeError": "wsipipe.errors",
    "evaluate_maps": "wsipipe.api",
    "find_stores": "wsipipe.store",
    "open_store": "wsipipe.api",
    "predict": "wsipipe.api",
    "read_settings": "wsipipe.pipeline",
    "run_stage": "wsipipe.api",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 - names; also in __init__.pyi, for type checkers


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsipipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
