"""Types of fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Drawing = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Pixels uint8 [h, w, 3] and the tissue in them, bool [h, w]."""

DrawTissue = Callable[..., Drawing]
WriteSvs = Callable[..., None]
MakePath = Callable[..., Path]
