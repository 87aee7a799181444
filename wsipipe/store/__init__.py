"""One slide, one OME-Zarr store: pixels, tissue, patches, masks and scores in one frame; the only user of zarr."""

from wsipipe.store.patches import CORRUPT, NOT_STORED, USABLE, PatchTable
from wsipipe.store.slide_store import SlideStore, find_stores

__all__ = ["CORRUPT", "NOT_STORED", "USABLE", "PatchTable", "SlideStore", "find_stores"]
