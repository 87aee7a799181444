"""What a store holds, as text for a person."""

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
        f"{grid.scale[0]:.6g} slide px per px, {grid.levels} levels",
        *_pixels(store),
        *_stain(store),
        *_tissue(store),
    ]
    if store.meta.get("note"):
        lines.append(f"note       {store.meta['note']}")
    return "\n".join([*lines, *_patches(store), *_maps(store)])


def _pixels(store: SlideStore) -> Iterator[str]:
    """How the pixels are stored, and what of them is the slide's own."""
    spec, meta = store.pixels().spec, store.meta
    codec = f"JPEG, quality {spec.quality}" if spec.quality else "zstd (lossless)"
    yield f"codec      {codec}, chunks of {spec.chunk_px} px"
    if levels := meta.get("copied_levels"):
        named = f"level{'s' if len(levels) > 1 else ''} {', '.join(map(str, levels))}"
        yield f"copied     {named}, as the slide has them; {_percent(meta.get('copied', 0))} of the chunks of level 0"
    else:
        yield "copied     nothing: the pixels are decoded and encoded anew"
    if bad := len(meta.get("bad", ())):
        yield f"unreadable {bad} tile{'s' if bad > 1 else ''} of the slide"


def _stain(store: SlideStore) -> Iterator[str]:
    """How colours are read, where not as they are stored."""
    if store.is_normalised:
        yield f"stain      evened out: read with a gamma of {', '.join(f'{g:.2f}' for g in store.meta['stain_gamma'])}"


def _tissue(store: SlideStore) -> Iterator[str]:
    """Where tissue was seen, and what was taken for something else."""
    if "tissue_mpp" not in store.meta:
        return
    shares: Mapping[str, float] = {}
    if "tissue" in store.names("labels"):
        shares = store.attributes("labels", "tissue").get("shares", {})
    away = ", ".join(f"{name} {_percent(share)}" for name, share in shares.items() if share)
    yield f"tissue     seen at {store.meta['tissue_mpp']:.4g} um/px" + (f"; left out: {away}" if away else "")


def _patches(store: SlideStore) -> Iterator[str]:
    """The lattices of patches; the one that the store was last tiled with is its own."""
    folders = (store.path / "patches").glob("[0-9]*_*/zarr.json")
    for patch_px, stride_px in sorted(tuple(map(int, f.parent.name.split("_"))) for f in folders):
        table = store.patches(patch_px, stride_px)
        counts = ((name, int(np.count_nonzero(table.status == status))) for status, name in _STATUS.items())
        listed = ", ".join(f"{n} {name}" for name, n in counts if n) or "none"
        own = " (the store's own)" if (patch_px, stride_px) == (store.grid.patch_px, store.grid.stride_px) else ""
        yield f"patches    {patch_px} px every {stride_px} px: {listed}{own}"


def _maps(store: SlideStore) -> Iterator[str]:
    """Masks and maps, with their classes."""
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
    """A share 0..1 in percent; 100 % and 0 % only where it is all or nothing."""
    return f"{min(max(share, 0.001), 0.999) if 0 < share < 1 else share:.1%}".replace(".0%", "%")
