"""How the levels of a store are made from those of its slide: copied, resampled or derived from the level below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsipipe.config.options import TileConfig
from wsipipe.errors import SlideError
from wsipipe.geometry import LEVEL_FACTOR, Grid, Window
from wsipipe.slides import Slide
from wsipipe.slides.level import BadTile
from wsipipe.slides.resample import source_level, steps_px
from wsipipe.store.shards import CHUNK_PX
from wsipipe.tiling.job import TileJob

MAX_COPIED_PX = 1024
"""Side of the largest tile that is copied as a chunk: a patch would have to decode too much of a larger one."""


def is_copied(slide: Slide, grid: Grid, config: TileConfig, level: int) -> bool:
    """Whether the slide's compressed tiles become the chunks of a store level, byte for byte."""
    factor = LEVEL_FACTOR**level
    tiles = slide.tiles(source_level(slide, grid, factor))
    return (
        config.codec == "jpeg"
        and tiles is not None
        and tiles.is_jpeg
        and tiles.tile_px[0] == tiles.tile_px[1] <= MAX_COPIED_PX
        and tiles.tile_px[0] % 8 == 0
        and steps_px(slide, grid, factor) == (1.0, 1.0)
        and grid.origin_px0 == (0, 0)
    )


def chunk_px(slide: Slide, grid: Grid, config: TileConfig, level: int) -> int:
    """Side of the chunks of a store level: that of the slide's tiles where the two can be aligned, else CHUNK_PX."""
    factor = LEVEL_FACTOR**level
    tiles = slide.tiles(source_level(slide, grid, factor))
    if tiles is None:
        return CHUNK_PX
    side, steps = tiles.tile_px[0], steps_px(slide, grid, factor)
    aligned = all(s == round(s) for s in steps) and tiles.tile_px[0] == tiles.tile_px[1] and side >= CHUNK_PX / 2
    return side if is_copied(slide, grid, config, level) or (aligned and side <= 2 * CHUNK_PX) else CHUNK_PX


def is_derived(slide: Slide, grid: Grid, level: int) -> bool:
    """Whether a store level is derived from the one below, because the slide has no coarser pixels for it."""
    coarse, fine = (source_level(slide, grid, LEVEL_FACTOR**k) for k in (level, level - 1))
    return level >= 2 and coarse == fine


def bad_windows(slide: Slide, grid: Grid, bad: Mapping[BadTile, str]) -> list[Window]:
    """The windows, in working px, that bad tiles of the slide leave without pixels."""
    windows = []
    for tile in sorted(bad):
        down, (w, h) = slide.downsamples[tile.level], slide.tile_px(tile.level)
        windows.append(grid.window_over_px0((tile.col * w * down, tile.row * h * down, w * down, h * down)))
    return windows


def unreadable(tiles: int) -> str:
    """The number of unreadable tiles, in words."""
    return f"{tiles} tile{'s' if tiles > 1 else ''} cannot be read"


def check_corrupt(job: TileJob, windows: Sequence[Window], planned_px: int, bad: Mapping[BadTile, str]) -> None:
    """Raise SlideError if `windows` without pixels cover more than `max_corrupt` of the `planned_px` pixels.

    bad: the unreadable tiles behind the windows -> reason.
    """
    lost = sum(w.width_px * w.height_px for w in windows) / max(1, planned_px)
    if windows and lost > job.config.max_corrupt:
        raise SlideError(
            f"{job.file.path}: {unreadable(len(windows))}, {min(1.0, lost):.0%} of the planned pixels "
            f"(limit {job.config.max_corrupt:.0%}, see --max-corrupt); first error: {next(iter(bad.values()))}"
        )
