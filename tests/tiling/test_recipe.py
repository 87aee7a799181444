"""A recipe: which options, files and resolutions change the pixels, the lattice, or neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from wsipipe.config.options import TileConfig
from wsipipe.errors import SlideError
from wsipipe.slides import Slide, open_slide
from wsipipe.tiling.job import TileJob
from wsipipe.tiling.recipe import Recipe

OTHER_PIXELS: tuple[dict[str, Any], ...] = (
    {"mpp": 1.0}, {"codec": "zstd"}, {"quality": 80}, {"tissue_mpp": 4.0}, {"min_area_um2": 5.0}, {"qc": False},
    {"fast_resample": True},
)  # fmt: skip
OTHER_LATTICE: tuple[dict[str, Any], ...] = ({"patch_px": 64}, {"stride_px": 64}, {"min_tissue": 0.5})
SAME: tuple[dict[str, Any], ...] = (
    {"max_corrupt": 0.5},
    {"qc_image": True},
    {"tissue": "masks"},
    {"stride_px": 128},
    {"normalise_stain": True},
)


@pytest.fixture
def slide(svs_path: Path) -> Iterator[Slide]:
    opened = open_slide(svs_path, "blob")
    yield opened
    opened.close()


def recipe(job: TileJob, slide: Slide, **options: Any) -> Recipe:
    return Recipe.of(replace(job, config=replace(job.config, **options)), slide)


def test_every_option_is_known_to_decide_pixels_lattice_or_neither() -> None:
    known = {k for option in (*OTHER_PIXELS, *OTHER_LATTICE, *SAME, {"mpp_override": 0}) for k in option}
    assert known == set(TileConfig.__dataclass_fields__)


def test_a_recipe_changes_with_what_decides_the_pixels(job: TileJob, slide: Slide) -> None:
    plain = recipe(job, slide)
    for option in OTHER_PIXELS:
        other = recipe(job, slide, **option)
        assert other.pixels != plain.pixels, option
        assert other.patches != plain.patches, option
    for option in OTHER_LATTICE:
        other = recipe(job, slide, **option)
        assert other.pixels == plain.pixels, option
        assert other.patches != plain.patches, option
    for option in SAME:
        assert recipe(job, slide, **option) == plain, option


def test_a_recipe_changes_with_the_resolution_and_the_mask(job: TileJob, slide: Slide, tmp_path: Path) -> None:
    plain = recipe(job, slide)
    other = open_slide(job.file.path, "blob", 0.49)
    assert Recipe.of(job, other).pixels != plain.pixels
    other.close()
    digests = set()
    for value in (0, 255):
        mask = tmp_path / f"{value}.png"
        mask.write_bytes(imagecodecs.png_encode(np.full((9, 12), value, np.uint8)))
        digests.add(Recipe.of(replace(job, file=replace(job.file, mask=mask)), slide).pixels)
        mask.rename(tmp_path / "moved.png")
        moved = replace(job, file=replace(job.file, mask=tmp_path / "moved.png"))
        digests.add(Recipe.of(moved, slide).pixels)
    assert len(digests | {plain.pixels}) == 3  # by its content, not by its name


def test_an_unreadable_mask_is_an_error_of_its_slide(job: TileJob, slide: Slide, tmp_path: Path) -> None:
    lost = replace(job, file=replace(job.file, mask=tmp_path / "lost.png"))
    with pytest.raises(SlideError, match=r"lost\.png: the tissue mask cannot be read \(No such file"):
        Recipe.of(lost, slide)
