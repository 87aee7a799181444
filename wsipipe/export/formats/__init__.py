"""Export formats: one module per format. This folder is the registry: a new module is a new format.

The name of a format is that of its module with `-` for `_`; the first line of the module's docstring is its line in
`wsipipe export --help`. A format is a module with

    SUFFIX: str                        a file is called <slide_id><SUFFIX>
    BY_DEFAULT: bool                   whether it is written when no format is named
    write(store, path, options)        write labels/<options.masks> of a store to `path`
    verify(store, path, options)       optional: read the file back; StoreError unless it equals the mask
    check_options(options)             optional: ConfigError for options that it cannot work with, before any work

`options` is the ExportConfig. A format with one file for all slides has, in place of SUFFIX and write,

    FILE: str                          the name of the file
    write_all(stores, path, options)   write labels/<options.masks> of all stores to `path`
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from wsipipe.errors import check

if TYPE_CHECKING:
    from wsipipe.config.options import ExportConfig
    from wsipipe.store import SlideStore


class Format(Protocol):
    """A module of this folder: a FileFormat or a TableFormat."""

    BY_DEFAULT: bool


@runtime_checkable
class FileFormat(Protocol):
    """A format with a file per slide."""

    SUFFIX: str

    def write(self, store: SlideStore, path: Path, options: ExportConfig, /) -> None:
        """Write the mask of a store."""
        ...


@runtime_checkable
class TableFormat(Protocol):
    """A format with one file for all slides."""

    FILE: str

    def write_all(self, stores: Sequence[SlideStore], path: Path, options: ExportConfig, /) -> None:
        """Write the masks of all stores."""
        ...


@runtime_checkable
class Verifiable(Protocol):
    """A format whose files can be read back."""

    def verify(self, store: SlideStore, path: Path, options: ExportConfig, /) -> None:
        """Raise StoreError unless the file equals the mask."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A format that does not work with every combination of options."""

    def check_options(self, options: ExportConfig, /) -> None:
        """Raise ConfigError for options that it cannot work with."""
        ...


def names() -> list[str]:
    """Names of the formats; no format is imported."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def summaries() -> dict[str, str]:
    """Name -> first line of the module's docstring, for `--help`; no format is imported."""
    found = {}
    for name in names():
        file = next(f for f in (Path(p) / f"{name.replace('-', '_')}.py" for p in __path__) if f.is_file())
        with file.open(encoding="utf-8") as source:
            found[name] = source.readline().strip().strip('"').rstrip(".")
    return found


def load(wanted: Sequence[str] = ()) -> dict[str, Format]:
    """Name -> module of the formats that are `wanted`, or of those that are written by default.

    Raises ConfigError for an unknown name.
    """
    for name in wanted:
        check(name in names(), f"export.formats: {name!r} is not known; choose from {', '.join(names())}")
    modules = {
        name: cast("Format", importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
        for name in dict.fromkeys(wanted or names())
    }
    return {name: module for name, module in modules.items() if wanted or module.BY_DEFAULT}
