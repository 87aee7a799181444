"""How the levels of a store come from those of its slide: copied, resampled or made from the level below."""

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

LARGEST_COPIED_PX = 1024
"""Side of the largest tile that is copied as a chunk: of larger ones a patch would need too much decoding."""


def copies(slide: Slide, grid: Grid, config: TileConfig, level: int) -> bool:
    """Whether the slide's compressed tiles are the chunks of a store level, byte for byte."""
    factor = LEVEL_FACTOR**level
    tiles = slide.tiles(source_level(slide, grid, factor))
    return (
        config.codec == "jpeg"
        and tiles is not None
        and tiles.is_jpeg
        and tiles.tile_px[0] == tiles.tile_px[1] <= LARGEST_COPIED_PX
        and tiles.tile_px[0] % 8 == 0
        and steps_px(slide, grid, factor) == (1.0, 1.0)
        and grid.origin_px0 == (0, 0)
    )


def chunk_px(slide: Slide, grid: Grid, config: TileConfig, level: int) -> int:
    """Side of the chunks of a store level: such that they begin where tiles of the slide begin, if that can be."""
    factor = LEVEL_FACTOR**level
    tiles = slide.tiles(source_level(slide, grid, factor))
    if tiles is None:
        return CHUNK_PX
    side, steps = tiles.tile_px[0], steps_px(slide, grid, factor)
    aligned = all(s == round(s) for s in steps) and tiles.tile_px[0] == tiles.tile_px[1] and side >= CHUNK_PX / 2
    return side if copies(slide, grid, config, level) or (aligned and side <= 2 * CHUNK_PX) else CHUNK_PX


def is_derived(slide: Slide, grid: Grid, level: int) -> bool:
    """Whether a store level is made from the one below, as the slide has no coarser pixels to make it from."""
    coarse, fine = (source_level(slide, grid, LEVEL_FACTOR**k) for k in (level, level - 1))
    return level >= 2 and coarse == fine


def bad_windows(slide: Slide, grid: Grid, bad: dict[BadTile, str]) -> list[Window]:
    """The working pixels that bad tiles leave without a value."""
    windows = []
    for tile in sorted(bad):
        down, (w, h) = slide.downsamples[tile.level], slide.tile_px(tile.level)
        windows.append(grid.window_over_px0((tile.col * w * down, tile.row * h * down, w * down, h * down)))
    return windows


def check_share(job: TileJob, bad: Sequence[Window], planned: int, why: Mapping[BadTile, str]) -> None:
    """SlideError if the windows without pixels are more than `max_corrupt` of the `planned` number of pixels."""
    lost = sum(w.width_px * w.height_px for w in bad) / max(1, planned)
    if bad and lost > job.config.max_corrupt:
        raise SlideError(
            f"{job.file.path}: {len(bad)} of its tiles cannot be read, {min(1.0, lost):.0%} of what is needed "
            f"(allowed: {job.config.max_corrupt:.0%}, see --max-corrupt); the first: {next(iter(why.values()))}"
        )
