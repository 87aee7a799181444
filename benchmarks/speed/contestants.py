"""Who is measured against whom: the contestants of every job, and the ratios that come of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Ratio

TIMED_SIZE = 40_000
MPP = {"native": 0.25, "half": 0.5}


@dataclass(frozen=True)
class Place:
    """Where everything is."""

    peers_python: Path
    slides: Path
    work: Path

    def slide(self, size: int = TIMED_SIZE) -> Path:
        """A slide by its side in px."""
        return self.slides / f"s{size // 1000}k.svs"

    def given(self, name: str) -> Path:
        """The folder of what is prepared for the contestants of a job."""
        return self.work / "given" / name


@dataclass(frozen=True)
class Contestant:
    """One thing that is timed: `name` of a script in peers/, with its arguments.

    like: the contestant whose probe its own must equal, but for `differs` grey levels in the mean. whole_slide: it
    converts all tiles of the slide, not only those planned.
    """

    key: str
    label: str
    script: str
    name: str
    arguments: tuple[str | Path, ...]
    like: str = ""
    differs: float = 0.0
    whole_slide: bool = False


@dataclass(frozen=True)
class Group:
    """Contestants that do the same work, wsipipe first; and the rows that come of it."""

    contestants: tuple[Contestant, ...]
    ratios: tuple[Ratio, ...]


def native(place: Place) -> Group:
    """Tiling at the slide's own resolution."""
    work = ("--slide", place.slide(), "--plan", place.given("native") / "plan.npz")
    job = f"{MPP['native']} um/px, JPEG, {TIMED_SIZE:,} px"
    shards, whole = f"{job}: shard phase", f"{job}: whole command without start-up"
    copied, merged = (
        "reading and rewriting the compressed bytes, 2 threads",
        "the same, neighbouring tiles read at once",
    )
    naive = "openslide-python to zarr-python (sharded, zstd), 2 processes"
    zipped = "libvips dzsave to zip"
    own = ("--slide", place.slide(), "--mpp", str(MPP["native"]))
    return Group(
        (
            Contestant("own", f"wsipipe, {job}", "own", "tile", own),
            Contestant("copy", copied, "native", "copy", work, like="own"),
            Contestant("copy-runs", merged, "native", "copy-runs", work, like="own"),
            Contestant("naive", naive, "native", "openslide-zarr", work, like="own"),
            Contestant("dzsave", zipped, "native", "dzsave", work, like="own", differs=3.0, whole_slide=True),
        ),
        (
            Ratio(shards, "own", copied, ("copy",), 0.6, "shards"),
            Ratio(whole, "own", copied, ("copy",), 0.15),
            Ratio(shards, "own", merged, ("copy-runs",), None, "shards"),
            Ratio(whole, "own", merged, ("copy-runs",), None),
            Ratio(shards, "own", naive, ("naive",), 50, "shards"),
            Ratio(whole, "own", naive, ("naive",), 15),
            Ratio(shards, "own", zipped, ("dzsave",), 15, "shards"),
            Ratio(whole, "own", zipped, ("dzsave",), None),
        ),
    )


def half(place: Place) -> Group:
    """Tiling at half the slide's resolution."""
    work = ("--slide", place.slide(), "--plan", place.given("half") / "plan.npz")
    job = f"{MPP['native']} to {MPP['half']} um/px, JPEG, {TIMED_SIZE:,} px"
    shards, whole = f"{job}: shard phase", f"{job}: whole command without start-up"
    pillow = "openslide-python, Pillow resize and JPEG, 2 processes"
    cucim = "cuCIM (CPU, 2 threads) reading, area mean and shard writer of wsipipe"
    own = ("--slide", place.slide(), "--mpp", str(MPP["half"]))
    return Group(
        (
            Contestant("own-half", f"wsipipe, {job}", "own", "tile", own),
            Contestant("pillow", pillow, "half", "openslide-pillow", work, like="own-half", differs=3.0),
            Contestant("cucim", cucim, "half", "cucim", work, like="own-half", differs=0.5),
        ),
        (
            Ratio(shards, "own-half", pillow, ("pillow",), 4, "shards"),
            Ratio(whole, "own-half", pillow, ("pillow",), 4),
            Ratio(shards, "own-half", cucim, ("cucim",), 0.9, "shards"),
            Ratio(whole, "own-half", cucim, ("cucim",), None),
        ),
    )


def reads(place: Place) -> Group:
    """Random patches of 256 px in batches of 32."""
    given = place.given("native")
    store, arrays = given / "store.zarr", place.given("arrays")
    on, off = (("--windows", given / f"{name}.npz", "--store", store) for name in ("aligned", "off-grid"))
    packed = ("--windows", given / "aligned.npz", "--store", arrays)
    tiles = ("--windows", given / "aligned.npz", "--slide", place.slide())
    aligned, off_grid = (f"random patches of 256 px, batches of 32, {how}" for how in ("aligned", "off grid"))
    loop, windows = "zarr-python, array of patches ({}), z[i] loop", "zarr-python, loop over windows of wsipipe's store"
    orthogonal = "zarr-python, array of patches (JPEG), orthogonal selection"
    turbo = "libjpeg-turbo ({}) decoding the same tiles, 2 threads, no store"
    zarrs = ("zarr-jpeg", "zarr-zstd", "zarr-orthogonal", "zarr-window")
    turbos = ("simplejpeg", "imagecodecs")
    return Group(
        (
            Contestant("read", f"wsipipe, {aligned}", "own", "read", on),
            Contestant("read-off", f"wsipipe, {off_grid}", "own", "read", off),
            Contestant("zarr-jpeg", loop.format("JPEG"), "reads", "zarr-loop-jpeg", packed, like="read", differs=3.0),
            Contestant("zarr-zstd", loop.format("zstd"), "reads", "zarr-loop-zstd", packed, like="read"),
            Contestant("zarr-orthogonal", orthogonal, "reads", "zarr-orthogonal", packed, like="read", differs=3.0),
            Contestant("zarr-window", windows, "reads", "zarr-window", on, like="read"),
            Contestant("zarr-window-off", f"{windows}, off grid", "reads", "zarr-window", off, like="read-off"),
            *(Contestant(t, turbo.format(t), "reads", f"turbo-{t}", tiles, like="read") for t in turbos),
        ),
        (
            Ratio(aligned, "read", "the fastest of zarr-python's loops and orthogonal selection", zarrs, 7),
            Ratio(off_grid, "read-off", windows, ("zarr-window-off",), None),
            Ratio(aligned, "read", turbo.format("the faster of two wrappers"), turbos, 0.5),
        ),
    )


GROUPS = {"native": native, "half": half, "reads": reads}
