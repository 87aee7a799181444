"""Metadata of a store: arrays created by stock zarr, OME-Zarr 0.5 groups, and the attributes of wsipipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from wsipipe.errors import StoreError
from wsipipe.geometry import LEVEL_FACTOR, Grid, ceil_div
from wsipipe.labels import IGNORE
from wsipipe.runtime.atomic import write_json
from wsipipe.store.codec import Jpeg
from wsipipe.store.shards import ArraySpec, ShardedArray

SCHEMA = 2
"""Version of the layout and of everything under `attributes.wsipipe`; see the docstring of `wsipipe.store`."""

SEAL = "wsipipe_crc32c"
"""Attribute of every zarr.json of a store: the checksum of its other content."""

COLOURS = ((230, 25, 75), (60, 180, 75), (255, 200, 0), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240))
"""Colours of mask values 1, 2, ..; easy to tell apart and unlike H&E."""


def create_array(path: Path, spec: ArraySpec, axes: Sequence[str]) -> ShardedArray:
    """Create the metadata of a sharded array; `ShardedArray` writes its shards."""
    chain: dict[str, Any]
    if spec.quality:
        order = (*range(1, len(spec.shape)), 0)
        chain = {
            "filters": [TransposeCodec(order=order)],
            "serializer": Jpeg(spec.quality),
            "compressors": [Crc32cCodec()],
        }
    else:
        chain = {"serializer": BytesCodec(), "compressors": [ZstdCodec(level=3), Crc32cCodec()]}
    lead = spec.shape[:-2]
    zarr.create_array(
        store=str(path),
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=(*lead, spec.chunk_px, spec.chunk_px),
        shards=(*lead, spec.shard_px, spec.shard_px),
        fill_value=spec.fill,
        dimension_names=list(axes),
        **chain,
    )
    _seal(path)
    return ShardedArray(path)


def create_table(path: Path, columns: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Create a group of plain arrays, one per column."""
    write_group(path, attributes)
    for name, values in columns.items():
        zarr.create_array(
            store=str(path / name),
            data=values,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            config={"write_empty_chunks": True},  # otherwise a lost chunk would read as zeros
        )
        _seal(path / name)


def create_cells(path: Path, shape: Sequence[int], chunks: Sequence[int], attributes: Mapping[str, Any]) -> None:
    """Create the metadata of a plain chunked array: float16 (row, col, D), nan where nothing is written."""
    zarr.create_array(
        store=str(path),
        shape=tuple(shape),
        dtype="float16",
        chunks=tuple(chunks),
        fill_value=float("nan"),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        dimension_names=["row", "col", "feature"],
        attributes=dict(attributes),
    )
    _seal(path)


def read_table(path: Path, names: Sequence[str]) -> list[Any]:
    """The columns of a table of `create_table`. Raises StoreError if one is damaged or missing."""
    return [_read_column(path / n) for n in names]


def chunk_files(path: Path) -> list[str]:
    """The chunk files of a plain array, relative to its folder."""
    column = zarr.open_array(str(path), mode="r")
    counts = (ceil_div(n, chunk) for n, chunk in zip(column.shape, column.chunks, strict=True))
    return ["/".join(["c", *map(str, cell)]) for cell in product(*map(range, counts))]


def damaged_chunks(path: Path) -> Iterator[tuple[str, str]]:
    """The existing chunk files of a plain array that cannot be read, with the reason."""
    array: Any = zarr.open_array(str(path), mode="r")
    for file in chunk_files(path):
        if (path / file).exists():
            try:
                array.get_block_selection(tuple(map(int, file.split("/")[1:])))
            except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
                yield file, f"cannot be read ({error})"


def _read_column(path: Path) -> Any:
    try:
        column = zarr.open_array(str(path), mode="r")
        if column.nchunks_initialized < column.nchunks:
            raise ValueError(f"{column.nchunks - column.nchunks_initialized} of its chunks are missing")
        return column[...]
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged, cannot be read ({error}); tile again") from None


def write_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """Write or replace the zarr.json of a group, atomically."""
    write_json(path / "zarr.json", sealed({"zarr_format": 3, "node_type": "group", "attributes": attributes}))


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a zarr.json with its checksum added to, or replaced in, the attributes."""
    bare = {**meta, "attributes": {k: v for k, v in meta.get("attributes", {}).items() if k != SEAL}}
    plain = json.loads(json.dumps(bare, default=str))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    plain["attributes"][SEAL] = f"{google_crc32c.value(text.encode()):08x}"
    return dict(plain)


def check_seal(path: Path) -> dict[str, Any]:
    """The attributes of the group or array at `path`. Raises StoreError if its zarr.json is missing or was changed."""
    try:
        meta = json.loads((path / "zarr.json").read_bytes())
        unchanged = sealed(meta)["attributes"][SEAL] == meta["attributes"][SEAL]
    except OSError as error:
        raise StoreError(f"missing or cannot be read ({error.strerror})") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise StoreError("not metadata written by wsipipe") from None
    if not unchanged:
        raise StoreError("changed since it was written: the checksum does not match")
    return dict(meta["attributes"])


def _seal(path: Path) -> None:
    """Add the checksum to a zarr.json that stock zarr wrote."""
    write_json(path / "zarr.json", sealed(json.loads((path / "zarr.json").read_text())))


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a group. Raises StoreError if there is none."""
    try:
        meta = json.loads((path / "zarr.json").read_text())
        return dict(meta.get("attributes", {}))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path}: not a store (no zarr.json); make one with: wsipipe tile") from None
    except OSError as error:
        raise StoreError(f"{path}/zarr.json: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, AttributeError):
        raise StoreError(f"{path}/zarr.json: not readable as Zarr v3 metadata; tile this slide again") from None


def multiscales(name: str, grid: Grid, axes: Sequence[str], stride_px: int = 1) -> dict[str, Any]:
    """OME-Zarr 0.5 `multiscales`: um per pixel of every level, and the half-pixel shift of area means."""
    datasets = []
    for level in range(grid.levels):
        f = LEVEL_FACTOR**level * stride_px
        lead = [1.0] * (len(axes) - 2)
        scale = [*lead, grid.mpp[1] * f, grid.mpp[0] * f]
        shift = [*(0.0 for _ in lead), (f - 1) / 2 * grid.mpp[1], (f - 1) / 2 * grid.mpp[0]]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    kinds = {"c": {"name": "c", "type": "channel"}}
    space = {a: {"name": a, "type": "space", "unit": "micrometer"} for a in ("y", "x")}
    return {"name": name, "axes": [{**kinds, **space}[a] for a in axes], "datasets": datasets}


def image_attributes(slide_id: str, grid: Grid, wsipipe: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the store's root: an RGB image."""
    channels = [
        {"label": n, "color": c, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for n, c in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    ]
    ome = {
        "version": "0.5",
        "multiscales": [multiscales(slide_id, grid, "cyx")],
        "omero": {"channels": channels, "rdefs": {"model": "color"}},
    }
    return {"ome": ome, "wsipipe": dict(wsipipe)}


def label_attributes(name: str, grid: Grid, values: Mapping[int, str], wsipipe: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of `labels/<name>`: an OME-Zarr label image; `values` names its mask values.

    Without names there are no colours either: OME-Zarr forbids empty lists, and viewers choose their own.
    """
    colours = []
    for value in values:
        rgb = (128, 128, 128) if value == IGNORE else COLOURS[(value - 1) % len(COLOURS)]
        colours.append({"label-value": value, "rgba": [*rgb, 0 if value in (0, IGNORE) else 255]})
    named = {"colors": colours, "properties": [{"label-value": v, "name": n} for v, n in values.items()]}
    ome = {
        "version": "0.5",
        "multiscales": [multiscales(name, grid, "yx")],
        "image-label": {**(named if values else {}), "source": {"image": "../../"}},
    }
    return {"ome": ome, "wsipipe": dict(wsipipe)}
