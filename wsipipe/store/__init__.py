"""One slide, one OME-Zarr store: pixels, tissue, patches, masks and scores in one frame; the only user of zarr."""

from wsipipe.store.slide_store import PatchTable, SlideStore, find_stores

__all__ = ["PatchTable", "SlideStore", "find_stores"]
