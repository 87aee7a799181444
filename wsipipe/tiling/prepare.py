"""The first task of tiling a slide: detect its tissue and plan its store, or resume the plan of a cut-off run."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

from wsipipe.errors import StoreError, other_inputs
from wsipipe.geometry import Grid, Window
from wsipipe.runtime.memory import trim_memory
from wsipipe.slides import Slide
from wsipipe.slides.resample import SlideView
from wsipipe.store import NOT_STORED, SlideStore
from wsipipe.store.label_images import shard_windows
from wsipipe.store.shards import Cell, ShardedArray
from wsipipe.tiling.cache import SlideCache
from wsipipe.tiling.job import TileJob, remove_partial
from wsipipe.tiling.levels import bad_windows, check_corrupt, chunk_px, is_copied, is_derived
from wsipipe.tiling.pixels import ShardTask
from wsipipe.tiling.plan import plan_chunks, plan_patches, with_status
from wsipipe.tiling.recipe import Recipe
from wsipipe.tiling.records import PLAN, record_file, remove_records
from wsipipe.tiling.slide_plan import SlidePlan
from wsipipe.tiling.versions import versions
from wsipipe.tissue.detect import TissueMask, TissueRules, find_tissue
from wsipipe.tissue.user_masks import tissue_from_mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The result of preparing a slide.

    status: planned, skipped (the store is complete), or added (a complete store got another lattice of patches, or
    another setting of stain normalisation). shards: still to be written. written: chunks that a cut-off run wrote.
    """

    status: str
    shards: tuple[ShardTask, ...] = ()
    written: int = 0


def prepare(job: TileJob, cache: SlideCache) -> Prepared:
    """Detect the tissue and plan the store, or resume the plan of a cut-off run; a complete store is reused.

    Raises SlideError if the slide cannot be used, StoreError if the target was made from other inputs.
    """
    slide = cache.slide(job)
    recipe = Recipe.of(job, slide)
    if existing := _reuse_store(job, slide, recipe):
        remove_partial(job)  # of a run with other settings
        remove_records(job.target)
        return existing
    if not _can_resume(job, recipe):
        remove_partial(job)
        _create(job, slide, recipe)
        trim_memory()  # of the overview and its tiles
    work = cache.workspace(job)
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


def _reuse_store(job: TileJob, slide: Slide, recipe: Recipe) -> Prepared | None:
    """Reuse the store at the target; None if there is none, or if it is to be replaced."""
    if not job.target.exists():
        return None
    try:
        old = SlideStore(job.target)
    except StoreError:
        if job.overwrite:
            return None
        raise
    if old.pixel_digest == recipe.pixels:
        return _update(job, slide, old, recipe)
    masks = [n for n in old.names("labels") if n != "tissue"]
    if not job.overwrite:
        also = f" (its masks {', '.join(masks)} would be deleted too)" if masks else ""
        raise StoreError(other_inputs(job.target, choose="") + also)
    if masks:
        log.warning("%s: replaced; its masks %s are deleted", job.target, ", ".join(masks))
    return None


def _update(job: TileJob, slide: Slide, old: SlideStore, recipe: Recipe) -> Prepared:
    """Give a store that has the right pixels the lattice and the stain normalisation of the job."""
    lattice = (job.config.patch_px, job.stride_px)
    found = old.patches_digest(*lattice)
    if found and found != recipe.patches and not job.overwrite:
        raise StoreError(
            f"{job.target}: its patches of {lattice[0]} px every {lattice[1]} px were selected with another "
            "--min-tissue; replace them with --overwrite"
        )
    changes_stain = old.is_normalised != job.config.normalise_stain
    if changes_stain:
        old.normalise_stain(job.config.normalise_stain)
    if found != recipe.patches:
        _add_lattice(job, slide, old, recipe)
        return Prepared("added")
    if (old.grid.patch_px, old.grid.stride_px) != lattice:
        old.update_meta(grid=old.grid.with_patches(*lattice).to_dict())
    return Prepared("added" if changes_stain else "skipped")


def _add_lattice(job: TileJob, slide: Slide, store: SlideStore, recipe: Recipe) -> None:
    """Add the patches of another lattice to a store; its pixels do not change."""
    grid = store.grid.with_patches(job.config.patch_px, job.stride_px)
    tissue = _tissue(job, slide, SlideView(slide, grid), grid)
    array = store.pixels()
    table = plan_patches(grid, tissue, job.config.min_tissue)
    bad = [Window(*box_px) for box_px in store.meta["bad_px"]]
    table = with_status(table, array.present(), array.spec.chunk_px, tissue, bad)
    if missing := int((table.status == NOT_STORED).sum()):
        log.warning(
            "%s: excluded %d of %d patches: the store has no pixels for some of their tissue; "
            "to include them, delete the store and tile again",
            job.slide_id,
            missing,
            len(table.cell),
        )
    store.write_patches(table, recipe.patches)


def _can_resume(job: TileJob, recipe: Recipe) -> bool:
    """Whether a cut-off run left a readable plan and store for the same recipe."""
    try:
        store = SlideStore(job.partial)
        for level in range(store.grid.levels):
            store.pixels(level)
        return SlidePlan.load(job.partial / PLAN).recipe == recipe
    except StoreError:
        return False


def _create(job: TileJob, slide: Slide, recipe: Recipe) -> None:
    """Detect the tissue, create the empty store and save the plan last: with it the run can resume."""
    info, config = slide.info, job.config
    x0, y0, width, height = info.bounds_px0
    step = int(max(d for d in slide.downsamples if d == round(d)))  # a pixel of every level starts at the origin
    origin = (x0 - x0 % step, y0 - y0 % step)
    size = (width + x0 - origin[0], height + y0 - origin[1])
    lattice = (config.patch_px, job.stride_px)
    grid = Grid.plan(size, info.mpp0, slide.downsamples, config.mpp, lattice, origin)
    view = SlideView(slide, grid)
    tissue = _tissue(job, slide, view, grid)
    check_corrupt(job, bad_windows(slide, grid, view.bad), grid.size_px[0] * grid.size_px[1], view.bad)
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
        "copied_levels": [k for k in range(grid.levels) if is_copied(slide, grid, config, k)],
    }
    SlideStore.create(job.partial, grid, config.quality if config.codec == "jpeg" else 0, meta, sides)
    SlidePlan(recipe, grid, tissue, table, plan_chunks(table, sides[0]), view.bad).save(job.partial / PLAN)


def _tissue(job: TileJob, slide: Slide, view: SlideView, grid: Grid) -> TissueMask:
    """The tissue of a slide: from the user's mask if there is one, otherwise detected."""
    config = job.config
    if job.file.mask:
        return tissue_from_mask(job.file.mask, grid, config.tissue_mpp, slide.info.bounds_px0[:2])
    return find_tissue(view.read, grid, TissueRules(config.tissue_mpp, config.min_area_um2, config.qc))


def _is_written(job: TileJob, array: ShardedArray, level: int, shard: Cell) -> bool:
    """Whether a cut-off run wrote a shard: its record exists, and the shard has as many chunks as it says."""
    try:
        record = json.loads(record_file(job, level, shard).read_text())
        opened = array.shard(shard)
        return bool(len(opened.present() if opened else []) == record["stored"])
    except (OSError, ValueError, KeyError, TypeError, StoreError):
        return False
