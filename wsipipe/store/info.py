"""What a store holds, as text for a person."""

from __future__ import annotations

from pathlib import Path

from wsipipe.store.shards import CHUNK_PX
from wsipipe.store.slide_store import SlideStore


def describe(path: Path) -> str:
    """Slide, resolution, levels, codec, patches, labels and scores of the store at `path`."""
    store = SlideStore(path)
    slide, grid = store.meta["slide"], store.grid
    width, height = grid.size_px
    spec = store.pixels().spec
    used = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    lines = [
        f"store      {path}  ({used / 1e6:,.1f} MB, schema {store.meta['schema']})",
        f"slide      {slide['path']}",
        f"           {slide['vendor']}, {slide['size_px0'][0]} x {slide['size_px0'][1]} px at "
        f"{slide['mpp0'][0]:.4g} x {slide['mpp0'][1]:.4g} um/px (from: {slide['mpp_source']})",
        f"working    {width} x {height} px at {grid.mpp[0]:.4g} x {grid.mpp[1]:.4g} um/px, "
        f"{grid.scale[0]:.6g} slide px per px, {grid.levels} levels",
        f"codec      {f'JPEG, quality {spec.quality}' if spec.quality else 'zstd (lossless)'}, chunks of {CHUNK_PX} px",
    ]
    if store.meta.get("note"):
        lines.append(f"note       {store.meta['note']}")
    for folder in sorted((path / "patches").iterdir()) if (path / "patches").is_dir() else []:
        if folder.is_dir():
            patch_px, stride_px = map(int, folder.name.split("_"))
            table = store.patches(patch_px, stride_px)
            usable = int((table.status == 0).sum())
            lines.append(f"patches    {patch_px} px every {stride_px} px: {len(table.cell)}, {usable} usable")
    for kind in ("labels", "scores"):
        for name in store.names(kind):
            meta = store.attributes(kind, name)
            classes = ", ".join(meta.get("classes", ["glass / tissue"]))
            stride = f", every {meta['stride_px']} px" if "stride_px" in meta else ""
            lines.append(f"{kind:<10} {name}: {classes}{stride}")
    return "\n".join(lines)
