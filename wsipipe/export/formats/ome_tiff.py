"""OME-TIFF: a pyramid with um, names and colours, for QuPath, napari, ImageJ and OpenSlide.

Layout. One 8-bit plane of mask values in tiles, deflated (the one lossless codec of all TIFF readers). The coarser
levels are those of the store, each 4 times smaller, in SubIFDs as the OME-TIFF specification requires. Level 0 also has
resolution tags, from which OpenSlide reads um/px.

Names and colours. OME-XML has no element for the meaning of pixel values, so they are in three places:

* the channel name, which QuPath, napari and bioio show, lists the values if they fit;
* map annotations `wsipipe.label.names` and `wsipipe.label.colours` (value -> name, value -> #RRGGBB) are for programs,
  the description of the image is for people. Both include 0 and 255;
* with `palette` the TIFF has a palette, for ImageJ, napari and image viewers. It is off by default: readers that apply
  palettes may return colours in place of values without a warning (OpenSlide, Pillow; the import of masks refuses such
  files), and QuPath and bioio ignore it. The grey file looks black until a viewer stretches its contrast, but cannot be
  misread: OpenSlide returns the value in each of R, G and B.

Position. Pixel (0, 0) starts at `Grid.origin_px0`, given in um as PositionX and PositionY of the plane and in level-0
pixels in the map annotation `wsipipe.slide`; PhysicalSizeX and PhysicalSizeY are the working um/px.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

import wsipipe
from wsipipe.config.options import ExportConfig
from wsipipe.errors import StoreError, check
from wsipipe.export.values import LabelValue, compare, label_values
from wsipipe.geometry import Grid, Window, ceil_div
from wsipipe.runtime.atomic import replacing
from wsipipe.runtime.digest import digest
from wsipipe.runtime.executor import thread_count
from wsipipe.store import SlideStore
from wsipipe.store.shards import ShardedArray

SUFFIX = ".ome.tif"
BY_DEFAULT = True

TILE_PX = 512
"""Side of a tile: 2 x 2 chunks of a store, so that each chunk is decoded once."""

NAMES, COLOURS, SLIDE = "wsipipe.label.names", "wsipipe.label.colours", "wsipipe.slide"
"""Namespaces of the map annotations."""

_NAME_CHARACTERS = 120
"""Longest channel name; a longer one would hide what a viewer shows beside it."""

_CLASSIC_BYTES = 2**32 - 2**26
"""Uncompressed size from which a file is BigTIFF, as its offsets may exceed 32 bits."""

_BUFFER_BYTES = 2**23
"""Buffer of tiles to be deflated and written; the default of tifffile is half a gigabyte."""

_CM_UM = 10_000.0


def write(store: SlideStore, path: Path, options: ExportConfig) -> None:
    """Write the mask of a store."""
    write_ome_tiff(store, options.masks, path)


def verify(store: SlideStore, path: Path, options: ExportConfig) -> None:
    """Read a file back and compare it with the mask."""
    verify_ome_tiff(path, store, options.masks)


def write_ome_tiff(
    store: SlideStore, name: str, path: Path, *, palette: bool = False, tile_px: int = TILE_PX, workers: int = 0
) -> Path:
    """Write `labels/<name>` of a store, all its levels, to `path` (*.ome.tif); returns `path`.

    Tiles are streamed from the store: memory does not grow with the slide. `palette` adds the colours of the classes
    (see above). `workers` threads deflate; 0: one per processor. Written aside, then renamed. Raises StoreError for a
    missing or damaged mask.
    """
    check(tile_px >= 16 and tile_px % 16 == 0, f"tiles of {tile_px} px: TIFF requires multiples of 16")
    values, grid = label_values(store, name), store.grid
    pixels = sum(h * w for h, w in (_padded(grid.level_shape(k), tile_px) for k in range(grid.levels)))
    how: dict[str, Any] = {
        "dtype": "uint8",
        "tile": (tile_px, tile_px),
        "compression": "adobe_deflate",
        "photometric": "minisblack",
        "software": f"wsipipe {wsipipe.__version__}",
        "maxworkers": thread_count(workers),
        "buffersize": _BUFFER_BYTES,
    }
    if palette:
        how |= {"photometric": "palette", "colormap": _colour_map(values)}
    with replacing(path) as partial, tifffile.TiffWriter(partial, bigtiff=pixels > _CLASSIC_BYTES, ome=True) as tiff:
        for level in range(grid.levels):
            more: dict[str, Any] = {"subfiletype": 1}
            if level == 0:
                per_cm = tuple(_CM_UM / um for um in grid.mpp)
                metadata = _ome(store, name, values)
                more = {"subifds": grid.levels - 1, "metadata": metadata, "resolution": per_cm, "resolutionunit": 3}
            tiff.write(_tiles(store.labels(name, level), tile_px), shape=grid.level_shape(level), **how, **more)
    return path


def verify_ome_tiff(path: Path, store: SlideStore, name: str) -> None:
    """Read every tile of every level back; compare them, the pixel size and the position with `labels/<name>`.

    Raises StoreError with the first difference, or the tile that cannot be decoded.
    """
    labels = [store.labels(name, level) for level in range(store.grid.levels)]
    try:
        tiff = tifffile.TiffFile(path, _multifile=False)
    except (OSError, ValueError, LookupError, tifffile.TiffFileError) as error:
        raise StoreError(f"{path}: cannot be opened as TIFF ({error}); export it again") from None
    with tiff:
        pages = _pages(tiff, path)
        _verify_frame(tiff, path, store.grid)
        found, expected = [p.shape for p in pages], [a.spec.shape for a in labels]
        if found != expected:
            raise StoreError(f"{path}: levels of {found} px found, {expected} expected; export it again")
        for level, (page, array) in enumerate(zip(pages, labels, strict=True)):
            for window, pixels in _decoded(page, path, level):
                compare(pixels, array.read(window), window, f"{path}: level {level}")


def _padded(shape: tuple[int, int], tile_px: int) -> tuple[int, int]:
    """A shape padded to whole tiles."""
    height, width = (ceil_div(n, tile_px) * tile_px for n in shape)
    return height, width


def _tiles(array: ShardedArray, tile_px: int) -> Iterator[NDArray[np.uint8]]:
    """The tiles of a mask in TIFF order, padded with 255 at the right and lower border."""
    height, width = array.spec.shape
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            yield array.read(Window(x, y, tile_px, tile_px)).astype(np.uint8, copy=False)


def _colour_map(values: tuple[LabelValue, ...]) -> NDArray[np.uint16]:
    """The TIFF palette: uint16 [3, 256], the 8-bit colours times 257; black for values without a name."""
    table = np.zeros((3, 256), np.uint16)
    for v in values:
        table[:, v.value] = np.array(v.rgb, np.uint16) * 257
    return table


def _ome(store: SlideStore, name: str, values: tuple[LabelValue, ...]) -> dict[str, Any]:
    """The OME-XML as tifffile expects it. The UUID is derived from the content: equal masks, equal files."""
    grid = store.grid
    (x_um, y_um), (x, y), (sx, sy) = grid.origin_um, grid.origin_px0, grid.scale
    meanings = "; ".join(f"{v.value} = {v.name}" for v in values)
    channel = f"{name} ({', '.join(f'{v.value} {v.name}' for v in values)})"
    made_of = digest(store.attributes("labels", name), grid.to_dict(), store.pixel_digest, wsipipe.__version__)
    slide = {
        "slide_id": store.slide_id,
        "labels": name,
        "origin_px0": f"{x} {y}",
        "px0_per_px": f"{sx!r} {sy!r}",
        "size_px0": "{} {}".format(*grid.size_px0),
        "labels_digest": str(store.attributes("labels", name).get("digest", "")),
    }
    return {
        "axes": "YX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, made_of)),
        "Creator": f"wsipipe {wsipipe.__version__}",
        "Name": f"{store.slide_id} {name}",
        "Description": (
            f"Mask {name} of slide {store.slide_id}; pixel values: {meanings}. 0 is none of the classes; 255 says "
            "nothing (uncertain, not predicted, or without pixels in the slide). "
            f"Pixel (0, 0) begins at level-0 pixel ({x}, {y}) of the slide; a pixel is {sx:g} x {sy:g} level-0 pixels."
        ),
        "PhysicalSizeX": grid.mpp[0],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": grid.mpp[1],
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": channel if len(channel) <= _NAME_CHARACTERS else name},
        "Plane": {"PositionX": x_um, "PositionXUnit": "µm", "PositionY": y_um, "PositionYUnit": "µm"},
        "MapAnnotation": [
            {"Namespace": NAMES, "Value": {str(v.value): v.name for v in values}},
            {"Namespace": COLOURS, "Value": {str(v.value): "#{:02X}{:02X}{:02X}".format(*v.rgb) for v in values}},
            {"Namespace": SLIDE, "Value": slide},
        ],
    }


def _pages(tiff: Any, path: Path) -> list[Any]:
    """The pages of the levels, finest first."""
    try:
        if not tiff.is_ome:
            raise ValueError("it has no OME-XML")
        return [level.pages[0].aspage() for level in tiff.series[0].levels]
    except Exception as error:  # noqa: BLE001 - tifffile raises many kinds; all mean a damaged file
        raise StoreError(f"{path}: not a readable OME-TIFF ({error}); export it again") from None


def _verify_frame(tiff: Any, path: Path, grid: Grid) -> None:
    """StoreError unless the OME-XML has the pixel size and the position of the store."""
    try:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        plane = pixels["Plane"]
        found = [float(pixels[f"PhysicalSize{a}"]) for a in "XY"] + [float(plane[f"Position{a}"]) for a in "XY"]
        units = {pixels[f"PhysicalSize{a}Unit"] for a in "XY"} | {plane[f"Position{a}Unit"] for a in "XY"}
    except Exception as error:  # noqa: BLE001 - of arbitrary XML
        raise StoreError(f"{path}: its OME-XML lacks size or position ({error!r}); export it again") from None
    expected = [*grid.mpp, *grid.origin_um]
    if units != {"µm"} or not np.allclose(found, expected, rtol=1e-9, atol=1e-9):
        raise StoreError(
            f"{path}: pixel size and position {found} {'/'.join(sorted(units))} found, {expected} µm expected; "
            "export it again"
        )


def _decoded(page: Any, path: Path, level: int) -> Iterator[tuple[Window, NDArray[Any]]]:
    """Every tile of a page without padding: its window and its pixels."""
    height, width = page.shape
    across = ceil_div(width, page.tilewidth)
    for i, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        row, col = divmod(i, across)
        x, y = col * page.tilewidth, row * page.tilelength
        window = Window(x, y, min(page.tilewidth, width - x), min(page.tilelength, height - y))
        try:
            page.parent.filehandle.seek(offset)
            tile = page.decode(page.parent.filehandle.read(size), i)[0]
        except Exception as error:  # noqa: BLE001 - the codecs raise many kinds
            raise StoreError(
                f"{path}: level {level}, the tile at x {x}, y {y} cannot be decoded ({error}); export it again"
            ) from None
        if tile is None:
            raise StoreError(f"{path}: level {level}, the tile at x {x}, y {y} is missing; export it again")
        yield window, np.asarray(tile).reshape(tile.shape[-3:-1])[: window.height_px, : window.width_px]
