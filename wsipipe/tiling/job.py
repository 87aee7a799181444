"""One slide to be tiled: what is made of it, what is planned, and the store that grows aside until it is complete."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import shutil
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import wsipipe
from wsipipe.config.options import TileConfig
from wsipipe.errors import SlideError, StoreError
from wsipipe.geometry import Grid
from wsipipe.runtime.atomic import lock_file, write_bytes
from wsipipe.runtime.digest import digest
from wsipipe.slides import Slide, SlideFile, open_slide
from wsipipe.slides.base import chosen_mpp
from wsipipe.slides.level import BadTile
from wsipipe.store import PatchTable, SlideStore
from wsipipe.store.shards import Cell
from wsipipe.tiling.plan import Bits
from wsipipe.tissue.detect import TissueMask

_ABOUT_THE_LATTICE = ("patch_px", "stride_px", "min_tissue")
_ABOUT_THE_RUN = ("max_corrupt", "qc_image", "mpp_override", "tissue")
_ABOUT_READING = ("normalise_stain",)


@dataclass(frozen=True)
class TileJob:
    """A slide, what is to be made of it and where. Small and picklable: tasks carry it to wherever they run.

    `call` tells one run of the command from another, so that nothing kept in memory outlives its run.
    """

    slide_id: str
    file: SlideFile
    config: TileConfig
    target: Path
    overwrite: bool = False
    qc_image: Path | None = None
    call: str = ""

    @property
    def aside(self) -> Path:
        """Where the store grows until it is complete."""
        return self.target.with_name(f".{self.target.name}.partial")

    @property
    def stride_px(self) -> int:
        """Step between patches."""
        return self.config.stride_px or self.config.patch_px

    def absolute(self) -> TileJob:
        """The same job for processes that run in other folders."""
        file = replace(self.file, path=self.file.path.absolute(), mask=self.file.mask and self.file.mask.absolute())
        image = self.qc_image and self.qc_image.absolute()
        return replace(self, file=file, target=self.target.absolute(), qc_image=image)


@dataclass(frozen=True)
class Recipe:
    """Digests of all that a store is made from: the pixels, and the lattice of patches over them."""

    pixels: str
    patches: str

    @classmethod
    def of(cls, job: TileJob, slide: Slide) -> Recipe:
        """From the content of the slide, its mask and the options that matter."""
        options = asdict(job.config)
        lattice = {k: options.pop(k) for k in _ABOUT_THE_LATTICE} | {"stride_px": job.stride_px}
        for k in (*_ABOUT_THE_RUN, *_ABOUT_READING):
            del options[k]
        mask = _digest_of(job.file.mask) if job.file.mask else ""
        pixels = digest(slide.info.fingerprint, slide.info.mpp0, mask, options)
        return cls(pixels, digest(pixels, lattice))


def _digest_of(mask: Path) -> str:
    try:
        with mask.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SlideError(f"{mask}: the tissue mask cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Plan:
    """What is to be written of a slide, decided before the first pixel is.

    chunks: the chunks of level 0 that must exist. bad: tiles of the slide that could not be read so far.
    """

    recipe: Recipe
    grid: Grid
    tissue: TissueMask
    table: PatchTable
    chunks: Bits
    bad: dict[BadTile, str]

    def save(self, path: Path) -> None:
        """Write the plan into one file."""
        facts = {
            "recipe": asdict(self.recipe),
            "grid": self.grid.to_dict(),
            "step_px": self.tissue.step_px,
            "note": self.tissue.note,
            "bad": bad_rows(self.bad),
        }
        arrays: dict[str, Any] = {
            "kind": self.tissue.kind,
            "chunks": self.chunks,
            "cell": self.table.cell,
            "tissue": self.table.tissue,
            "status": self.table.status,
        }
        buffer = io.BytesIO()
        np.savez(buffer, facts=np.array(json.dumps(facts)), **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan; StoreError if it is not whole."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
                facts = json.loads(str(held["facts"]))
                grid = Grid.from_dict(facts["grid"])
                return cls(
                    Recipe(**facts["recipe"]),
                    grid,
                    TissueMask(held["kind"], facts["step_px"], facts["note"]),
                    PatchTable(grid, held["cell"], held["tissue"], held["status"]),
                    held["chunks"],
                    bad_of_rows(facts["bad"]),
                )
        except Exception as error:  # noqa: BLE001 - zipfile and numpy raise many kinds; all mean that it is damaged
            raise StoreError(f"{path}: not a plan that can be read ({error})") from None


class Work:
    """A job on its way: the open slide, the plan and the store aside."""

    def __init__(self, job: TileJob) -> None:
        self.job = job
        self.slide = slide_of(job)
        self.plan = Plan.load(job.aside / "plan.npz")
        self.store = SlideStore(job.aside)

    def cells(self, level: int, shard: tuple[int, int]) -> list[tuple[int, int]]:
        """The chunks of a shard that must exist, row-major."""
        cells = self.store.pixels(level).spec.chunks_of_shard(shard)
        return [c for c in cells if self.plan.chunks[c]] if level == 0 else cells


@lru_cache(maxsize=4)
def slide_of(job: TileJob) -> Slide:
    """The slide of a job, at the resolution that the user gives, if any; kept open, as `work_of` says."""
    override, source = chosen_mpp(job.file, job.config.mpp_override)
    return open_slide(job.file.path, job.slide_id, override, source)


@lru_cache(maxsize=4)
def work_of(job: TileJob) -> Work:
    """The job as it stands, kept open: a shard takes less time than opening its slide.

    What is kept belongs to this process until four other slides have come, or `forget` is called.
    """
    return Work(job)


def forget() -> None:
    """Let go of all slides that this process keeps open."""
    work_of.cache_clear()
    slide_of.cache_clear()


def bad_rows(bad: dict[BadTile, str]) -> list[list[Any]]:
    """Bad tiles as JSON-ready values: [level, row, col, reason]."""
    return [[t.level, t.row, t.col, why] for t, why in sorted(bad.items())]


def bad_of_rows(rows: list[list[Any]]) -> dict[BadTile, str]:
    """The bad tiles that `bad_rows` wrote."""
    return {BadTile(level, row, col): why for level, row, col, why in rows}


def tidy(job: TileJob) -> None:
    """Remove the plan and the records from a store that is in its place and needs them no more."""
    shutil.rmtree(job.target / "written", ignore_errors=True)
    (job.target / "plan.npz").unlink(missing_ok=True)


def discard(job: TileJob) -> None:
    """Remove what has been made of a job so far."""
    for left in (job.aside, *job.aside.parent.glob(f".{glob.escape(job.aside.name)}.*.partial")):
        shutil.rmtree(left, ignore_errors=True)
    lock_file(job.aside).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of what decided the pixels."""
    from importlib.metadata import version

    names = ("openslide-python", "openslide-bin", "tifffile", "imagecodecs", "simplejpeg", "zarr", "numpy")
    return {"wsipipe": wsipipe.__version__, **{n: version(n) for n in names}}


def record_file(job: TileJob, level: int, shard: Cell) -> Path:
    """The file that says that a shard is written, and how."""
    return job.aside / "written" / f"{level}.{shard[0]}.{shard[1]}.json"


def records_of(job: TileJob) -> dict[tuple[int, int, int], dict[str, Any]]:
    """(level, row, col) of every shard that is written -> its record."""
    found = {}
    for path in sorted((job.aside / "written").glob("*.json")):
        level, row, col, _ = path.name.split(".")
        found[int(level), int(row), int(col)] = json.loads(path.read_text())
    return found
