"""The first task of tiling a slide: find its tissue, plan its store, or go on with the plan of an earlier run."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

from wsipipe.errors import StoreError
from wsipipe.geometry import Grid, Window
from wsipipe.runtime.memory import trim_memory
from wsipipe.slides import Slide
from wsipipe.slides.resample import SlideView
from wsipipe.store import NOT_STORED, SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import Cell, ShardedArray
from wsipipe.tiling.job import Plan, Recipe, TileJob, discard, record_file, slide_of, tidy, versions, work_of
from wsipipe.tiling.levels import bad_windows, check_share, chunk_px, copies, is_derived
from wsipipe.tiling.pixels import ShardTask
from wsipipe.tiling.plan import plan_chunks, plan_patches, with_status
from wsipipe.tissue.detect import TissueMask, TissueRules, find_tissue
from wsipipe.tissue.user_masks import tissue_from_mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What preparing a slide came to: planned (with the shards still to be written), skipped, or added.

    What is added to a store is a lattice of patches, or another way to read its stain.
    """

    status: str
    shards: tuple[ShardTask, ...] = ()
    written: int = 0


def prepare(job: TileJob) -> Prepared:
    """Find the tissue and plan the store, or go on with the plan of an earlier run; what is complete stays as it is.

    Raises SlideError where the slide cannot be used, StoreError where something else is in the way.
    """
    slide = slide_of(job)
    recipe = Recipe.of(job, slide)
    if there := _already(job, slide, recipe):
        discard(job)  # of a run with other settings
        tidy(job)
        return there
    if not _continues(job, recipe):
        discard(job)
        _create(job, slide, recipe)
        trim_memory()  # the overview and its tiles are done with
    work = work_of(job)
    tasks, written = [], 0
    for level in range(work.plan.grid.levels if len(work.plan.table.cell) else 0):
        if is_derived(work.slide, work.plan.grid, level):
            continue
        array = work.store.pixels(level)
        for shard, _ in shard_windows(array.spec):
            n = len(work.cells(level, shard))
            if n and _is_written(job, array, level, shard):
                written += n
            elif n:
                tasks.append(ShardTask(level, shard, n))
    return Prepared("planned", tuple(tasks), written)


def _already(job: TileJob, slide: Slide, recipe: Recipe) -> Prepared | None:
    """What is to be done about a store that is there; None if it is to be made (anew)."""
    if not job.target.exists():
        return None
    try:
        old = SlideStore(job.target)
    except StoreError:
        if job.overwrite:
            return None
        raise
    if old.pixel_digest == recipe.pixels:
        return _kept(job, slide, old, recipe)
    made = [n for n in old.names("labels") if n != "tissue"]
    if not job.overwrite:
        also = f" (its labels {', '.join(made)} would go too)" if made else ""
        raise StoreError(
            f"{job.target}: made from another slide or with other settings; replace it with --overwrite{also}"
        )
    if made:
        log.warning("%s: replaced; its labels %s are gone", job.target, ", ".join(made))
    return None


def _kept(job: TileJob, slide: Slide, old: SlideStore, recipe: Recipe) -> Prepared:
    """A store that holds the pixels already: its lattice and how its stain is read become those that are asked for."""
    lattice = (job.config.patch_px, job.stride_px)
    held = old.patches_digest(*lattice)
    if held and held != recipe.patches and not job.overwrite:
        raise StoreError(
            f"{job.target}: its patches of {lattice[0]} px every {lattice[1]} px were chosen with another "
            "--min-tissue; replace them with --overwrite"
        )
    restained = old.is_normalised != job.config.normalise_stain
    if restained:
        old.normalise_stain(job.config.normalise_stain)
    if held != recipe.patches:
        _add_lattice(job, slide, old, recipe)
        return Prepared("added")
    if (old.grid.patch_px, old.grid.stride_px) != lattice:
        old.note(grid=old.grid.with_patches(*lattice).to_dict())
    return Prepared("added" if restained else "skipped")


def _add_lattice(job: TileJob, slide: Slide, store: SlideStore, recipe: Recipe) -> None:
    """Add the patches of another lattice to a store; its pixels stay as they are."""
    grid = store.grid.with_patches(job.config.patch_px, job.stride_px)
    tissue = _tissue(job, slide, SlideView(slide, grid), grid)
    array = store.pixels()
    table = plan_patches(grid, tissue, job.config.min_tissue)
    bad = [Window(*box_px) for box_px in store.meta["bad_px"]]
    table = with_status(table, array.present(), array.spec.chunk_px, tissue, bad)
    if lacking := int((table.status == NOT_STORED).sum()):
        log.warning(
            "%s: %d of %d patches reach over tissue that is not in the store and are left out; "
            "to have them, remove the store and tile again",
            job.slide_id,
            lacking,
            len(table.cell),
        )
    store.write_patches(table, recipe.patches)


def _continues(job: TileJob, recipe: Recipe) -> bool:
    """Whether an earlier run left a plan for the same pixels and patches, with all it needs to go on."""
    try:
        store = SlideStore(job.aside)
        for level in range(store.grid.levels):
            store.pixels(level)
        return Plan.load(job.aside / "plan.npz").recipe == recipe
    except StoreError:
        return False


def _create(job: TileJob, slide: Slide, recipe: Recipe) -> None:
    """Find the tissue, make the empty store and save the plan, which comes last: with it the store can go on."""
    info, config = slide.info, job.config
    x0, y0, width, height = info.bounds_px0
    step = int(max(d for d in slide.downsamples if d == round(d)))  # all levels have a pixel that begins at the origin
    origin = (x0 - x0 % step, y0 - y0 % step)
    size = (width + x0 - origin[0], height + y0 - origin[1])
    lattice = (config.patch_px, job.stride_px)
    grid = Grid.plan(size, info.mpp0, slide.downsamples, config.mpp, lattice, origin)
    view = SlideView(slide, grid)
    tissue = _tissue(job, slide, view, grid)
    check_share(job, bad_windows(slide, grid, view.bad), grid.size_px[0] * grid.size_px[1], view.bad)
    table = plan_patches(grid, tissue, config.min_tissue)
    sides = [chunk_px(slide, grid, config, level) for level in range(grid.levels)]
    meta = {
        "slide_id": job.slide_id,
        "slide": info.to_dict(),
        "pixel_digest": recipe.pixels,
        "tile": asdict(config),
        "tissue_mpp": tissue.step_px * grid.mean_mpp,
        "versions": versions(),
        "note": tissue.note,
        "copied_levels": [k for k in range(grid.levels) if copies(slide, grid, config, k)],
    }
    SlideStore.create(job.aside, grid, config.quality if config.codec == "jpeg" else 0, meta, sides)
    Plan(recipe, grid, tissue, table, plan_chunks(table, sides[0]), view.bad).save(job.aside / "plan.npz")


def _tissue(job: TileJob, slide: Slide, view: SlideView, grid: Grid) -> TissueMask:
    """The tissue of a slide: the user's mask if there is one, else what is found."""
    config = job.config
    if job.file.mask:
        return tissue_from_mask(job.file.mask, grid, config.tissue_mpp, slide.info.bounds_px0[:2])
    return find_tissue(view.read, grid, TissueRules(config.tissue_mpp, config.min_area_um2, config.qc))


def _is_written(job: TileJob, array: ShardedArray, level: int, shard: Cell) -> bool:
    """Whether a shard was written by an earlier run: the record is there, and the chunks that it counts."""
    try:
        record = json.loads(record_file(job, level, shard).read_text())
        held = array.shard(shard)
        return bool(len(held.present() if held else []) == record["stored"])
    except (OSError, ValueError, KeyError, TypeError, StoreError):
        return False
