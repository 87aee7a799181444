"""Versions of the packages that decide the pixels of a store."""

from __future__ import annotations

import wsipipe

_PACKAGES = ("openslide-python", "openslide-bin", "tifffile", "imagecodecs", "simplejpeg", "zarr", "numpy")


def versions() -> dict[str, str]:
    """Package -> version, for the attributes of a store."""
    from importlib.metadata import version

    return {"wsipipe": wsipipe.__version__, **{n: version(n) for n in _PACKAGES}}
