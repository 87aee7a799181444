"""The resolution of a slide: which source takes precedence, what is refused, and whole downsamples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.errors import SlideError
from wsipipe.slides import SlideFile
from wsipipe.slides.base import chosen_mpp, resolve_mpp, whole_downsample


def test_the_resolution_comes_with_its_source() -> None:
    assert resolve_mpp((0.5, 0.51), None, "a.svs") == ((0.5, 0.51), "slide")
    assert resolve_mpp((0.5, 0.51), None, "a.svs", "tiff tags") == ((0.5, 0.51), "tiff tags")
    assert resolve_mpp((0.5, 0.51), (0.25, 0.25), "a.svs") == ((0.25, 0.25), "override")
    assert resolve_mpp(None, (0.25, 0.5), "a.svs", override_source="manifest") == ((0.25, 0.5), "manifest")


MPP = st.none() | st.tuples(*[st.sampled_from((0.05, 0.25, 0.26, 0.5, 20.0)) | st.floats(allow_subnormal=False)] * 2)


@given(MPP, MPP)
def test_a_resolution_is_plausible_or_an_error_and_only_an_override_may_be_uneven(found: Any, override: Any) -> None:
    mpp, source = (override, "override") if override else (found, "slide")
    plausible = mpp is not None and all(0.05 <= side <= 20 for side in mpp)
    if plausible and (override or max(mpp) / min(mpp) <= 1.05):
        assert resolve_mpp(found, override, "a.svs") == (mpp, source)
    else:
        with pytest.raises(SlideError, match=r"^a\.svs: .*--mpp-override.* of a manifest$"):
            resolve_mpp(found, override, "a.svs")


def test_resolutions_that_differ_along_x_and_y_are_an_error() -> None:
    for mpp in ((0.5, 0.6), (0.6, 0.5)):
        with pytest.raises(
            SlideError,
            match=r"along x \(0\.. um/px\) and y \(0\.. um/px\) differ; set them with --mpp-override or in columns",
        ):
            resolve_mpp(mpp, None, "a.svs")


def test_a_manifest_row_takes_precedence_over_the_flag() -> None:
    path = Path("a.svs")
    assert chosen_mpp(SlideFile(path), 0.0) == (0.0, "override")
    assert chosen_mpp(SlideFile(path), 0.5) == (0.5, "override")
    assert chosen_mpp(SlideFile(path, (0.25, 0.26)), 0.5) == ((0.25, 0.26), "manifest")


@given(st.integers(1, 64), st.integers(200, 10**6), st.integers(200, 10**6))
def test_a_level_of_floored_or_rounded_size_has_its_whole_downsample(factor: int, width: int, height: int) -> None:
    for size in ((width * factor + factor - 1, height * factor), (width * factor, height * factor + factor // 2)):
        ratio = size[0] / width
        assert whole_downsample(ratio, size, (width, height)) == factor


def test_a_downsample_that_no_whole_number_explains_is_kept() -> None:
    assert whole_downsample(2.5, (2500, 2500), (1000, 1000)) == 2.5
    assert whole_downsample(4.1, (4100, 4100), (1000, 1000)) == 4.1
