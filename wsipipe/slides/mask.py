"""Read a user's mask image onto the working frame of a slide, and say what its values mean."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, SlideError
from wsipipe.geometry import Grid
from wsipipe.labels import IGNORE, slide_id_of

SUFFIXES = (".png", ".tif", ".tiff")

ROUNDING_PX = (1, 2)
"""Pixels by which a side below 100 px, and a longer one, may miss slide size / factor: floor, ceil and halving in
several steps all occur. On a short side two pixels would forgive the mask of another slide."""

_TAGS = (".truth", ".mask")
"""Ends of a stem that mark a mask, best first; a bare <slide_id>.png counts after them, as it may be the slide."""

Indices = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Source rows [h] and columns [w], ascending, for the rows and columns of the working frame."""


@dataclass(frozen=True)
class ValueMap:
    """What mask values mean: (mask value, class index) pairs, 0 none of the classes, 255 ignore.

    `flag` is the option that messages tell the user to give.
    """

    pairs: tuple[tuple[int, int], ...]
    flag: str = "--truth-map"

    @classmethod
    def parse(cls, text: str, classes: Sequence[str], flag: str = "--truth-map") -> ValueMap:
        """From text such as `0=ignore,1=0,2=tumour`; empty text means that values are class indices.

        A meaning is a class name, `ignore`, one of `0`, `none`, `other`, or a class index. Raises ConfigError.
        """
        if not text.strip():
            return cls.identity(classes, flag)
        pairs: dict[int, int] = {}
        for part in (p.strip() for p in text.split(",") if p.strip()):
            left, found, right = (p.strip() for p in part.partition("="))
            if not found or not left.isdecimal() or int(left) > IGNORE:
                raise ConfigError(f"{flag}: {part!r} is not VALUE=CLASS with a value 0..255, e.g. 2={[*classes, 0][0]}")
            if int(left) in pairs:
                raise ConfigError(f"{flag}: value {left} is given twice")
            pairs[int(left)] = _index(right, classes, f"{flag}: {part!r}")
        return cls(tuple(pairs.items()), flag)

    @classmethod
    def identity(cls, classes: Sequence[str], flag: str = "--truth-map") -> ValueMap:
        """Values are class indices already: 0..K, or 255 for ignore."""
        return cls(tuple((i, i) for i in (*range(len(classes) + 1), IGNORE)), flag)

    def apply(self, mask: NDArray[np.uint8], where: object = "mask") -> NDArray[np.uint8]:
        """Mask values to class indices: uint8 [h, w] both. ConfigError lists values without a meaning."""
        table, known = np.zeros(256, np.uint8), np.zeros(256, np.bool_)
        for value, index in self.pairs:
            table[value], known[value] = index, True
        fine = known[mask]
        if not fine.all():
            strange = ", ".join(str(v) for v in np.unique(mask[~fine])[:20])
            meant = ",".join(f"{v}={'ignore' if i == IGNORE else i}" for v, i in self.pairs)
            raise ConfigError(
                f"{where}: holds values {strange} that have no meaning (known: {meant}); "
                f"say what every value means: give {self.flag}, e.g. 0=ignore,1=0,2=1"
            )
        return table[mask]


def _index(meaning: str, classes: Sequence[str], where: str) -> int:
    """The class index of one meaning; a class called `other` or `1` wins over the word."""
    if meaning in classes:
        return list(classes).index(meaning) + 1
    if meaning in ("0", "none", "other"):
        return 0
    if meaning in ("ignore", str(IGNORE)):
        return IGNORE
    if meaning.isdecimal() and int(meaning) <= len(classes):
        return int(meaning)
    raise ConfigError(f"{where}: unknown class {meaning!r}; known are {', '.join((*classes, '0', 'ignore'))}")


def find_masks(spec: str, slide_ids: Iterable[str], suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Slide id -> mask file, for those slides that have one.

    `spec` is a folder, a glob, or a pattern that holds `{slide_id}`. In a folder or glob the id is the stem of the
    file, less `.truth` or `.mask`. Raises ConfigError if no slide has a mask or one slide has two.
    """
    ids = list(slide_ids)
    if "{slide_id}" in spec:
        named = {i: Path(spec.replace("{slide_id}", i)) for i in ids}
        found, looked = {i: p for i, p in named.items() if p.is_file()}, f"files {spec}"
    elif Path(spec).is_dir():
        found, looked = _by_id(Path(spec).iterdir(), ids, suffixes), f"{spec}/{_named(suffixes)}"
    else:
        found = _by_id((Path(p) for p in glob.glob(spec, recursive=True)), ids, suffixes)
        looked = f"files {spec} (no such folder) that are called {_named(suffixes)}"
    if not found:
        some = ", ".join(ids[:3]) + (", .." if len(ids) > 3 else "")
        raise ConfigError(f"no mask for any of the {len(ids)} slides ({some}); looked for {looked}")
    return found


def _named(suffixes: Sequence[str]) -> str:
    """How the masks in a folder are called."""
    return f"<slide_id>[{'|'.join(_TAGS)}]{'|'.join(suffixes)}"


def _by_id(paths: Iterable[Path], ids: Sequence[str], suffixes: Sequence[str]) -> dict[str, Path]:
    """The best mask file of each slide: one called .truth before .mask before the bare id."""
    known, found = set(ids), dict[str, list[tuple[int, Path]]]()
    for path in sorted(p for p in paths if p.suffix.lower() in suffixes and p.is_file()):
        stem = slide_id_of(path.name.removesuffix(path.suffix))
        tagged = [(rank, stem.removesuffix(tag)) for rank, tag in enumerate(_TAGS) if stem.endswith(tag)]
        for rank, slide_id in [*tagged, (len(_TAGS), stem)]:
            if slide_id in known:
                found.setdefault(slide_id, []).append((rank, path))
    best: dict[str, Path] = {}
    for slide_id, candidates in found.items():
        first = min(rank for rank, _ in candidates)
        same = [path for rank, path in candidates if rank == first]
        if len(same) > 1:
            raise ConfigError(f"slide {slide_id} has two masks, {same[0]} and {same[1]}; remove one or give a pattern")
        best[slide_id] = same[0]
    return best


def read_mask(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """A mask image in the working frame: uint8 [h, w] of `grid.size_px`, nearest to each pixel's centre.

    The image lies in the slide's level-0 frame, whole or smaller by one factor. Tiled and striped TIFF is decoded
    piece by piece. Raises SlideError if it is no single-channel 8- or 16-bit image, or not of the slide's size.
    """
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(path, grid)
        return _read_png(path, grid)
    except SlideError:
        raise
    except FileNotFoundError:
        raise SlideError(f"{path}: no such mask") from None
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds; all mean that this is no readable image
        raise SlideError(f"{path}: not a readable PNG or TIFF mask ({' '.join(str(error).split())})") from None


def _read_png(path: Path, grid: Grid) -> NDArray[np.uint8]:
    stream = path.read_bytes()
    raw = np.asarray(imagecodecs.png_decode(stream))
    if raw.ndim != 2:
        raise _not_single(path, "a palette or several channels")
    rows, cols = _nearest(path, grid, (raw.shape[1], raw.shape[0]))
    bits = stream[24]  # bit depth in IHDR, which always comes first
    values = _as_uint8(path, raw[np.ix_(rows, cols)])
    # the decoder stretches 1, 2 and 4 bits to 0..255; a mask means the numbers in the file
    return values // np.uint8(255 // (2**bits - 1)) if bits < 8 else values


def _read_tiff(path: Path, grid: Grid) -> NDArray[np.uint8]:
    with tifffile.TiffFile(path, _multifile=False) as tiff:  # never follow names of other files
        page = tiff.pages[0]
        if page.samplesperpixel != 1 or page.photometric.name == "PALETTE":
            raise _not_single(path, "a palette" if page.samplesperpixel == 1 else f"{page.samplesperpixel} channels")
        if page.photometric.name == "MINISWHITE":
            raise SlideError(f"{path}: its values are inverted (0 is white); save the mask with 0 as black")
        rows, cols = _nearest(path, grid, (page.imagewidth, page.imagelength))
        out = np.zeros((len(rows), len(cols)), np.uint8)
        for data, (_, _, y, x, _), (_, height, width, _) in page.segments(maxworkers=1):
            r = slice(*np.searchsorted(rows, (y, y + height)))
            c = slice(*np.searchsorted(cols, (x, x + width)))
            if data is not None:  # tiles that a sparse TIFF leaves out are 0
                out[r, c] = _as_uint8(path, data[0, :, :, 0][np.ix_(rows[r] - y, cols[c] - x)])
        return out


def _not_single(path: Path, found: str) -> SlideError:
    return SlideError(f"{path}: found {found}; expected a mask of one 8- or 16-bit channel whose values are classes")


def _as_uint8(path: Path, values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """bool, uint8 or uint16 values within 0..255 as uint8; SlideError for anything else."""
    if values.dtype not in (np.bool_, np.uint8, np.uint16):
        raise _not_single(path, f"{values.dtype} pixels")
    highest = int(values.max(initial=0))
    if highest > IGNORE:
        raise SlideError(f"{path}: found the value {highest}; expected mask values 0..255")
    return values.astype(np.uint8, copy=False)


def _nearest(path: Path, grid: Grid, size_mask: tuple[int, int]) -> Indices:
    """The mask pixel that holds the centre of each working pixel; `size_mask` is the mask's (width, height)."""
    factors = _factors(grid.size_px0, size_mask)
    if factors is None:
        (w, h), (w0, h0) = size_mask, grid.size_px0
        raise SlideError(
            f"{path}: found {w} x {h} px; expected {w0} x {h0} px, the slide's level 0, or that divided by one factor "
            f"(e.g. {-(-w0 // 2)} x {-(-h0 // 2)}); export the mask of the whole slide"
        )
    x, y = (
        np.minimum((np.arange(n) + 0.5) * scale / factor, size - 1).astype(np.intp)
        for n, scale, factor, size in zip(grid.size_px, grid.scale, factors, size_mask, strict=True)
    )
    return y, x


def _factors(size_px0: tuple[int, int], size_mask: tuple[int, int]) -> tuple[float, float] | None:
    """Level-0 px per mask px along x and y, whole where the sizes allow it; None if no common factor does."""
    sides = list(zip(size_px0, size_mask, strict=True))
    off = [ROUNDING_PX[m >= 100] for m in size_mask]
    low = max(n / (m + e) for (n, m), e in zip(sides, off, strict=True))
    high = min(n / (m - e) if m > e else np.inf for (n, m), e in zip(sides, off, strict=True))
    if low > high or high < 1:
        return None
    whole = max(1, round(sum(n / m for n, m in sides) / 2))
    if low <= whole <= high:
        return float(whole), float(whole)
    return sides[0][0] / sides[0][1], sides[1][0] / sides[1][1]
