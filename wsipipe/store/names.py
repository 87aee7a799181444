"""Names that users may give to masks, maps and their run folders, and their paths in a store."""

from __future__ import annotations

from wsipipe.errors import ConfigError

RESERVED = ("tissue", "tile", "zarr.json")
"""Names that stores and run folders use themselves: the tissue mask, the ledger of tiling, Zarr's metadata."""

OBJECTS_SUFFIX = "-objects"
"""The objects of mask NAME are stored as labels/NAME-objects; the name of a mask must not end like this."""


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` is a plain file name that users may give to masks, maps and run folders."""
    if name in RESERVED:
        raise ConfigError(f"name {name!r}: reserved by wsipipe; choose another --name")
    if name.endswith(OBJECTS_SUFFIX):
        raise ConfigError(f"name {name!r}: the ending {OBJECTS_SUFFIX} is reserved for objects; choose another --name")
    plain = name and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name) and name.isascii()
    if not plain:
        raise ConfigError(f"name {name!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")


def path_in_store(kind: str, name: str) -> str:
    """The path of labels, scores or objects within a store."""
    return f"labels/{name}{OBJECTS_SUFFIX}" if kind == "objects" else f"{kind}/{name}"
