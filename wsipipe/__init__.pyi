"""The public names, for type checkers and editors; `__init__.py` imports each when it is first used."""

from wsipipe.api import StageResult, evaluate_maps, open_store, predict, run_stage
from wsipipe.dataset import Patches
from wsipipe.errors import WsipipeError
from wsipipe.geometry import Window
from wsipipe.pipeline import Settings, read_settings
from wsipipe.store import SlideStore, find_stores

__version__: str

__all__ = [
    "Patches",
    "Settings",
    "SlideStore",
    "StageResult",
    "Window",
    "WsipipeError",
    "__version__",
    "evaluate_maps",
    "find_stores",
    "open_store",
    "predict",
    "read_settings",
    "run_stage",
]
