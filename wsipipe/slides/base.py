"""The interface of every slide reader, and the properties of a slide that are known before a pixel is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError

if TYPE_CHECKING:
    from wsipipe.slides.tiff.tiles import TiffTiles

PLAUSIBLE_MPP = (0.05, 20.0)
"""Accepted um/px of level 0; a value outside this range is treated as an error in the file."""


@dataclass(frozen=True)
class SlideFile:
    """A slide as the user names it: its path, and what a manifest adds to it.

    mpp_override: (x, y) um/px of level 0, replaces what the file says. mask: the user's tissue mask.
    """

    path: Path
    mpp_override: tuple[float, float] | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class SlideInfo:
    """Identity of a slide. `fingerprint` changes when the pixels may have changed.

    bounds_px0: (x, y, w, h) of the scanned area where the file records it (MRXS, SCN), otherwise the whole slide.
    """

    path: str
    vendor: str
    fingerprint: str
    size_px0: tuple[int, int]
    mpp0: tuple[float, float]
    mpp_source: str
    bounds_px0: tuple[int, int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        return asdict(self)


class Slide(Protocol):
    """A slide with a pyramid of levels; every position is in level-0 pixels (`_px0`)."""

    id: str
    info: SlideInfo
    downsamples: tuple[float, ...]

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        ...

    def read(self, xy_px0: tuple[int, int], level: int, size_level_px: tuple[int, int]) -> NDArray[np.uint8]:
        """RGB of a region at `level` with its top left corner at `xy_px0`: uint8 [h, w, 3], white outside the slide.

        Raises SlideError if the pixels cannot be decoded. Thread-safe.
        """
        ...

    def tiles(self, level: int) -> TiffTiles | None:
        """The compressed tiles of a level if they can be decoded one by one, otherwise None."""
        ...

    def tile_px(self, level: int) -> tuple[int, int]:
        """(width, height) of the tiles in which the file stores a level, as far as known."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


Opener = Callable[[Path, str, tuple[float, float] | None, str], Slide]
"""Opens a slide: opener(path, slide_id, mpp_override, mpp_source). `mpp_override` is (x, y) um/px of level 0 and
replaces what the file says, None trusts the file; `mpp_source` names where the override comes from. Raises SlideError
if the file is damaged or its resolution is missing or implausible."""


def chosen_mpp(file: SlideFile, flag: float) -> tuple[tuple[float, float] | float, str]:
    """The override of a slide's mpp and its source: (x, y) or one number in um/px, 0.0 for no override.

    A manifest row applies to one slide, `--mpp-override` (`flag`) to all slides: the row takes precedence.
    """
    return (flag, "override") if file.mpp_override is None else (file.mpp_override, "manifest")


def resolve_mpp(
    found: tuple[float, float] | None,
    override: tuple[float, float] | None,
    path: object,
    found_source: str = "slide",
    override_source: str = "override",
) -> tuple[tuple[float, float], str]:
    """The mpp (x, y) of level 0 in um/px and its source: `override` if given, otherwise what the file says (`found`).

    Non-square pixels are accepted only from an explicit override. Raises SlideError if the resolution is missing or
    implausible; the message says how to set it.
    """
    mpp, source = (found, found_source) if override is None else (override, override_source)
    if mpp is None:
        raise SlideError(
            f"{path}: the file does not contain its resolution; set it with --mpp-override, e.g. 0.25, "
            "or in column mpp of a manifest"
        )
    x, y = mpp
    low, high = PLAUSIBLE_MPP
    if not (low <= x <= high and low <= y <= high):
        raise SlideError(
            f"{path}: resolution {x:g} x {y:g} um/px is outside {low:g}..{high:g}; "
            "correct it with --mpp-override or in column mpp of a manifest"
        )
    if override is None and max(x, y) / min(x, y) > 1.05:
        raise SlideError(
            f"{path}: the resolutions along x ({x:g} um/px) and y ({y:g} um/px) differ; "
            "set them with --mpp-override or in columns mpp_x, mpp_y of a manifest"
        )
    return (x, y), source


def whole_downsample(downsample: float, size_px0: tuple[int, int], size_level_px: tuple[int, int]) -> float:
    """A downsample such as 4.0003, an artefact of rounded level sizes, as the whole number behind it.

    A downsample that no whole number within 5 % explains to the pixel is returned unchanged.
    """
    whole = round(downsample)
    explained = all(abs(n0 / whole - n) <= 1 for n0, n in zip(size_px0, size_level_px, strict=True))
    return float(whole) if explained and abs(downsample / whole - 1) < 0.05 else float(downsample)
