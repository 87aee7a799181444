"""Read a mask image in the working frame of a slide, map its values to classes, and find masks by slide id."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, SlideError
from wsipipe.geometry import Grid, Window, ceil_div
from wsipipe.labels import IGNORE, slide_id_of

SUFFIXES = (".png", ".tif", ".tiff")

ROUNDING_PX = (1, 2)
"""Tolerance in px between a side of a mask (below 100 px, from 100 px) and slide size / factor: masks are rounded
down, up, or halved in several steps. On a short side, 2 px would accept the mask of another slide."""

_TAGS = (".truth", ".mask")
"""Endings of a stem that mark a mask, preferred first; a bare <slide_id>.png comes last, as it may be the slide."""

Indices = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Source rows [h] and columns [w] of the rows and columns of the working frame, ascending."""


@dataclass(frozen=True)
class ValueMap:
    """Maps the values of a mask and the names in an annotation file to class indices: 0 none, 255 ignore.

    pairs: (mask value, index). names: (name, index), in the order in which ASAP groups are painted. flag: the command
    line option that errors refer to.
    """

    pairs: tuple[tuple[int, int], ...]
    names: tuple[tuple[str, int], ...] = ()
    flag: str = "--truth-map"

    @classmethod
    def parse(cls, text: str, classes: Sequence[str], flag: str = "--truth-map") -> ValueMap:
        """Parse text such as `0=ignore,1=0,2=tumour` for masks or `_0=tumour,_2=0` for annotations.

        The right side is a class name, `ignore`, one of `0`, `none`, `other`, or a class index. Empty text is the
        identity: mask values are class indices, annotation names are class names. Raises ConfigError.
        """
        if not text.strip():
            return cls.identity(classes, flag)
        pairs: dict[int, int] = {}
        names: dict[str, int] = {}
        for part in (p.strip() for p in text.split(",") if p.strip()):
            left, equals, right = (p.strip() for p in part.partition("="))
            number = left.removeprefix("-").isdecimal()
            if not equals or not left or (number and not (left.isdecimal() and int(left) <= IGNORE)):
                raise ConfigError(
                    f"{flag}: {part!r} is not VALUE=CLASS with a value 0..255 or a name, e.g. 2={[*classes, 0][0]}"
                )
            if left in names:
                raise ConfigError(f"{flag}: {'value' if number else 'name'} {left} appears twice")
            names[left] = _index(right, classes, f"{flag}: {part!r}")
            if number:
                pairs[int(left)] = names[left]
        return cls(tuple(pairs.items()), tuple(names.items()), flag)

    @classmethod
    def identity(cls, classes: Sequence[str], flag: str = "--truth-map") -> ValueMap:
        """Mask values are class indices (0..K, 255 ignore) and names are class names."""
        words = {n: i for i, n in enumerate(classes, start=1)}
        for word, index in (("0", 0), ("none", 0), ("other", 0), ("ignore", IGNORE)):
            words.setdefault(word, index)
        return cls(tuple((i, i) for i in (*range(len(classes) + 1), IGNORE)), tuple(words.items()), flag)

    def apply(self, mask: NDArray[np.uint8], where: object = "mask") -> NDArray[np.uint8]:
        """Mask values to class indices: uint8 [h, w] both. Raises ConfigError with the values that have no class."""
        table, known = np.zeros(256, np.uint8), np.zeros(256, np.bool_)
        for value, index in self.pairs:
            table[value], known[value] = index, True
        mapped = known[mask]
        if not mapped.all():
            unknown = ", ".join(str(v) for v in np.unique(mask[~mapped])[:20])
            pairs = ",".join(f"{v}={'ignore' if i == IGNORE else i}" for v, i in self.pairs)
            raise ConfigError(
                f"{where}: holds values {unknown} that have no meaning (known: {pairs}); "
                f"map every value to a class: give {self.flag}, e.g. 0=ignore,1=0,2=1"
            )
        return table[mask]


def _index(meaning: str, classes: Sequence[str], where: str) -> int:
    """The class index of a right side; a class called `other` or `1` takes precedence over the word."""
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
    """Slide id -> mask file, for the slides that have one.

    `spec` is a folder, a glob, or a pattern with `{slide_id}`. In a folder or glob the id is the stem of the file
    without `.truth` or `.mask`. Raises ConfigError if no slide has a mask, or one slide has two.
    """
    ids = list(slide_ids)
    if "{slide_id}" in spec:
        named = {i: Path(spec.replace("{slide_id}", i)) for i in ids}
        found, searched = {i: p for i, p in named.items() if p.is_file()}, f"files {spec}"
    elif Path(spec).is_dir():
        found, searched = _by_id(Path(spec).iterdir(), ids, suffixes), f"{spec}/{_named(suffixes)}"
    else:
        found = _by_id((Path(p) for p in glob.glob(spec, recursive=True)), ids, suffixes)
        searched = f"files {spec} (no such folder) named {_named(suffixes)}"
    if not found:
        some = ", ".join(ids[:3]) + (", .." if len(ids) > 3 else "")
        raise ConfigError(f"no mask for any of the {len(ids)} slides ({some}); looked for {searched}")
    return found


def _named(suffixes: Sequence[str]) -> str:
    """The file names that count as masks in a folder."""
    return f"<slide_id>[{'|'.join(_TAGS)}]{'|'.join(suffixes)}"


def _by_id(paths: Iterable[Path], ids: Sequence[str], suffixes: Sequence[str]) -> dict[str, Path]:
    """The preferred mask file of each slide: .truth before .mask before the bare id."""
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
            raise ConfigError(
                f"slide {slide_id} has two masks, {same[0]} and {same[1]}; remove one, or name the masks by a pattern"
            )
        best[slide_id] = same[0]
    return best


def read_mask(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """A mask image in the working frame: uint8 [h, w] of `grid.size_px`, nearest neighbour at the pixel centres.

    The image covers the slide's level-0 frame at full size or downsampled by one factor. A TIFF is decoded tile by
    tile or strip by strip. Raises SlideError unless it has a single 8- or 16-bit channel and fits the slide's size.
    """
    return mask_reader(path, grid)(Window(0, 0, *grid.size_px))


def mask_reader(path: Path, grid: Grid) -> Callable[[Window], NDArray[np.uint8]]:
    """A reader of windows (working px, inside the frame) of a mask image; pixels as from `read_mask`.

    Only the tiles or strips of a TIFF under a window are decoded; a PNG is kept in memory in the working frame.
    """
    with _as_slide_errors(path):
        if path.suffix.lower() not in (".tif", ".tiff"):
            whole = _read_png(path, grid)
            return lambda w: whole[w.y_px : w.y_px + w.height_px, w.x_px : w.x_px + w.width_px]
        with tifffile.TiffFile(path, _multifile=False) as tiff:  # never open other files that the header names
            page = _mask_page(path, tiff)
            rows, cols = _nearest(path, grid, (page.imagewidth, page.imagelength))

    def read(w: Window) -> NDArray[np.uint8]:
        with _as_slide_errors(path):
            return _read_tiff(path, rows[w.y_px : w.y_px + w.height_px], cols[w.x_px : w.x_px + w.width_px])

    return read


@contextmanager
def _as_slide_errors(path: Path) -> Iterator[None]:
    """Turn any error of the block into a SlideError that names the file."""
    try:
        yield
    except SlideError:
        raise
    except FileNotFoundError:
        raise SlideError(f"{path}: no such mask") from None
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds; all mean that the image is not readable
        raise SlideError(f"{path}: not a readable PNG or TIFF mask ({' '.join(str(error).split())})") from None


def _read_png(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """A PNG in the working frame: uint8 [h, w]."""
    stream = path.read_bytes()
    raw = np.asarray(imagecodecs.png_decode(stream))
    if raw.ndim != 2:
        raise _not_single(path, "a palette or several channels")
    rows, cols = _nearest(path, grid, (raw.shape[1], raw.shape[0]))
    bits = stream[24]  # bit depth in IHDR, which always comes first
    values = _as_uint8(path, raw[np.ix_(rows, cols)])
    # the decoder scales 1, 2 and 4 bits to 0..255; the values of a mask are the numbers in the file
    return values // np.uint8(255 // (2**bits - 1)) if bits < 8 else values


def _mask_page(path: Path, tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The first page of a TIFF. Raises SlideError if it cannot be a mask."""
    page = tiff.pages[0]
    if page.samplesperpixel != 1 or page.photometric.name == "PALETTE":
        raise _not_single(path, "a palette" if page.samplesperpixel == 1 else f"{page.samplesperpixel} channels")
    if page.photometric.name == "MINISWHITE":
        raise SlideError(f"{path}: found inverted values (0 is white); save the mask with 0 as black")
    return page


def _read_tiff(path: Path, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The mask at (rows, cols), ascending: uint8 [len(rows), len(cols)]; decodes only the tiles under them."""
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        page = _mask_page(path, tiff)
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = ceil_div(page.imagewidth, width)
        out = np.zeros((len(rows), len(cols)), np.uint8)
        for row in range(rows[0] // height, rows[-1] // height + 1):
            for col in range(cols[0] // width, cols[-1] // width + 1):
                index = row * across + col
                tiff.filehandle.seek(page.dataoffsets[index])
                stream = tiff.filehandle.read(page.databytecounts[index])
                data, _, _ = page.decode(stream or None, index)
                r = slice(*np.searchsorted(rows, (row * height, (row + 1) * height)))
                c = slice(*np.searchsorted(cols, (col * width, (col + 1) * width)))
                if data is not None:  # tiles that a sparse TIFF omits are 0
                    tile = data[0, :, :, 0]
                    out[r, c] = _as_uint8(path, tile[np.ix_(rows[r] - row * height, cols[c] - col * width)])
        return out


def _not_single(path: Path, found: str) -> SlideError:
    """The error for an image that is not a single channel of class values."""
    return SlideError(f"{path}: found {found}; expected a mask of one 8- or 16-bit channel whose values are classes")


def _as_uint8(path: Path, values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """bool, uint8 or uint16 values within 0..255 as uint8. Raises SlideError for any other."""
    if values.dtype not in (np.bool_, np.uint8, np.uint16):
        raise _not_single(path, f"{values.dtype} pixels")
    highest = int(values.max(initial=0))
    if highest > IGNORE:
        raise SlideError(f"{path}: found the value {highest}; expected mask values 0..255")
    return values.astype(np.uint8, copy=False)


def _nearest(path: Path, grid: Grid, size_mask: tuple[int, int]) -> Indices:
    """The mask pixel under the centre of each working pixel; `size_mask` is the mask's (width, height)."""
    factors = _factors(grid.size_px0, size_mask)
    if factors is None:
        (w, h), (w0, h0) = size_mask, grid.size_px0
        raise SlideError(
            f"{path}: found {w} x {h} px; expected {w0} x {h0} px, the slide's level 0, or that divided by one factor "
            f"(e.g. {ceil_div(w0, 2)} x {ceil_div(h0, 2)}); export the mask of the whole slide"
        )
    x, y = (
        np.minimum((np.arange(n) + 0.5) * scale / factor, size - 1).astype(np.intp)
        for n, scale, factor, size in zip(grid.size_px, grid.scale, factors, size_mask, strict=True)
    )
    return y, x


def _factors(size_px0: tuple[int, int], size_mask: tuple[int, int]) -> tuple[float, float] | None:
    """Level-0 px per mask px along x and y, whole if the sizes allow it; None if they have no common factor."""
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
