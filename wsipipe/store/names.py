"""Names that a user may give to masks, maps and their run folders, and where these lie in a store."""

from __future__ import annotations

from wsipipe.errors import ConfigError

RESERVED = ("tissue", "tile", "zarr.json")
"""Names that stores and run folders use themselves: the tissue mask, the ledger of tiling, Zarr's metadata."""

OBJECTS = "-objects"
"""What follows the name of a mask in that of the image that numbers its objects; no mask has a name that ends so."""


def check_name(name: str) -> None:
    """ConfigError unless `name` is a plain file name that a user may give to masks, maps and their run folder."""
    if name in RESERVED:
        raise ConfigError(f"name {name!r}: it belongs to wsipipe itself; choose another --name")
    if name.endswith(OBJECTS):
        raise ConfigError(f"name {name!r}: names that end in {OBJECTS} are those of objects; choose another --name")
    plain = name and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name) and name.isascii()
    if not plain:
        raise ConfigError(f"name {name!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")


def place(kind: str, name: str) -> str:
    """Where something lies in the store."""
    return f"labels/{name}{OBJECTS}" if kind == "objects" else f"{kind}/{name}"
