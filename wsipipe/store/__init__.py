"""One slide, one OME-Zarr store: pixels, tissue, patches, masks and scores in one frame. No other package uses zarr.

Schema versions. `layout.SCHEMA` numbers the paths of the arrays, their meaning and everything below the attribute
`wsipipe`. A change that an older or a newer reader would misread raises it, with an entry in the changelog. A reader
opens its own version only and names the version otherwise; it ignores attributes that it does not know. Every version
has an archive, `tests/archives/schema<N>.zip`, written by the release that introduced it: all later releases of that
version must open and verify it and read the same values from it.
"""

from wsipipe.store.patches import CORRUPT, NOT_STORED, USABLE, PatchTable
from wsipipe.store.slide_store import SlideStore, find_stores

__all__ = ["CORRUPT", "NOT_STORED", "USABLE", "PatchTable", "SlideStore", "find_stores"]
