"""Summary of a store as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.store.features import feature_names
from wsipipe.store.patches import CORRUPT, NOT_STORED, USABLE
from wsipipe.store.slide_store import SlideStore

_STATUS = {USABLE: "usable", CORRUPT: "corrupt", NOT_STORED: "not stored"}


def describe(path: Path) -> str:
    """Slide, resolution, levels, codec, tissue, patches, labels and scores of the store at `path`."""
    store = SlideStore(path)
    slide, grid = store.meta["slide"], store.grid
    width, height = grid.size_px
    used = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    lines = [
        f"store      {path}  ({used / 1e6:,.1f} MB, schema {store.meta['schema']})",
        f"slide      {slide['path']}",
        f"           {slide['vendor']}, {slide['size_px0'][0]} x {slide['size_px0'][1]} px at "
        f"{slide['mpp0'][0]:.4g} x {slide['mpp0'][1]:.4g} um/px (from: {slide['mpp_source']})",
        f"working    {width} x {height} px at {grid.mpp[0]:.4g} x {grid.mpp[1]:.4g} um/px, "
        f"{grid.scale[0]:.6g} slide px per px, {grid.levels} level{'s' if grid.levels > 1 else ''}",
        *_pixels(store),
        *_stain(store),
        *_tissue(store),
    ]
    if store.meta.get("note"):
        lines.append(f"note       {store.meta['note']}")
    return "\n".join([*lines, *_patches(store), *_maps(store)])


def _pixels(store: SlideStore) -> Iterator[str]:
    """Codec of the pixels, and which of them are copied from the slide."""
    spec, meta = store.pixels().spec, store.meta
    codec = f"JPEG, quality {spec.quality}" if spec.quality else "zstd (lossless)"
    yield f"codec      {codec}, chunks of {spec.chunk_px} px"
    if levels := meta.get("copied_levels"):
        named = f"level{'s' if len(levels) > 1 else ''} {', '.join(map(str, levels))}"
        yield f"copied     {named} byte for byte; {_percent(meta.get('copied', 0))} of the chunks of level 0"
    else:
        yield "copied     none: all pixels were decoded and encoded again"
    if bad := len(meta.get("bad", ())):
        yield f"unreadable {bad} tile{'s' if bad > 1 else ''} of the slide"


def _stain(store: SlideStore) -> Iterator[str]:
    """Stain normalisation, if it is on."""
    if store.is_normalised:
        yield f"stain      normalised when reading, gamma {', '.join(f'{g:.2f}' for g in store.meta['stain_gamma'])}"


def _tissue(store: SlideStore) -> Iterator[str]:
    """Resolution of tissue detection, and shares of what was excluded."""
    if "tissue_mpp" not in store.meta:
        return
    shares: Mapping[str, float] = {}
    if "tissue" in store.names("labels"):
        shares = store.attributes("labels", "tissue").get("shares", {})
    excluded = ", ".join(f"{name} {_percent(share)}" for name, share in shares.items() if share)
    yield f"tissue     detected at {store.meta['tissue_mpp']:.4g} um/px" + (
        f"; excluded: {excluded}" if excluded else ""
    )


def _patches(store: SlideStore) -> Iterator[str]:
    """The lattices of patches; the default is the one that the slide was last tiled with."""
    folders = (store.path / "patches").glob("[0-9]*_*/zarr.json")
    for patch_px, stride_px in sorted(tuple(map(int, f.parent.name.split("_"))) for f in folders):
        table = store.patches(patch_px, stride_px)
        counts = ((name, int(np.count_nonzero(table.status == status))) for status, name in _STATUS.items())
        listed = ", ".join(f"{n} {name}" for name, n in counts if n) or "none"
        default = " (default)" if (patch_px, stride_px) == (store.grid.patch_px, store.grid.stride_px) else ""
        yield f"patches    {patch_px} px every {stride_px} px: {listed}{default}"


def _maps(store: SlideStore) -> Iterator[str]:
    """Masks and score maps with their classes, and features."""
    for kind in ("labels", "objects", "scores"):
        for name in store.names(kind):
            meta: dict[str, Any] = store.attributes(kind, name)
            classes = ", ".join(meta.get("classes", ["glass / tissue"]))
            more = f", every {meta['stride_px']} px" if "stride_px" in meta else ""
            more += f", {meta['objects']} objects in labels/{name}-objects" if "objects" in meta else ""
            yield f"{kind:<10} {name}: {classes}{more}"
    for encoder, grid in feature_names(store):
        used = sum(f.stat().st_size for f in (store.path / "features" / encoder / grid).rglob("*") if f.is_file())
        yield f"features   {encoder}: cells {grid} (instance, seen, shrink), {used / 1e6:,.1f} MB"


def _percent(share: float) -> str:
    """A share 0..1 in percent; rounded to 100 % or 0 % only if it is exactly that."""
    return f"{min(max(share, 0.001), 0.999) if 0 < share < 1 else share:.1%}".replace(".0%", "%")
