"""The versions on record."""

from __future__ import annotations

import numpy as np

import wsipipe
from wsipipe.tiling.versions import versions


def test_versions_name_wsipipe_and_the_packages_that_decide_pixels() -> None:
    found = versions()
    assert (found["wsipipe"], found["numpy"]) == (wsipipe.__version__, np.__version__)
    assert {"openslide-bin", "tifffile", "imagecodecs", "simplejpeg", "zarr"} <= found.keys()
