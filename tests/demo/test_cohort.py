"""Check that the demonstration cohort is what its labels and its truth say."""

import csv
from pathlib import Path

import numpy as np
import openslide
import pytest
from scipy import ndimage as ndi
from skimage.io import imread

from wsipipe.demo.cohort import CLASSES, COLUMNS, Cohort, CohortConfig, make_cohort
from wsipipe.demo.drawing import draw_slide

SMALL = CohortConfig(train_slides=3, test_slides=1, size_px0=(896, 768), patch_px0=128, seed=3)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_cohort(tmp_path_factory.mktemp("cohort"), SMALL)


def rows_of(cohort: Cohort) -> list[dict[str, str]]:
    with cohort.labels_csv.open(newline="") as file:
        return list(csv.DictReader(file))


def truth_of(cohort: Cohort, slide: Path) -> np.ndarray:
    return imread(cohort.truth_dir / f"{slide.stem}.png")


def pixels_of(slide: Path) -> np.ndarray:
    with openslide.OpenSlide(slide) as opened:
        return np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))


def test_slides_open_with_their_resolution_and_their_truth(cohort: Cohort) -> None:
    assert [slide.name for slide in cohort.slides] == ["train_00.svs", "train_01.svs", "train_02.svs", "test_00.svs"]
    assert cohort.classes == CLASSES
    for slide in cohort.slides:
        with openslide.OpenSlide(slide) as opened:
            assert opened.properties["openslide.vendor"] == "aperio"
            assert float(opened.properties["openslide.mpp-x"]) == SMALL.mpp0
            assert opened.level_dimensions == ((896, 768), (224, 192), (56, 48))
        truth = truth_of(cohort, slide)
        assert truth.shape == (768, 896)
        assert truth.dtype == np.uint8
        assert set(np.unique(truth)) <= {0, 1, 2}


def test_written_pixels_are_the_drawn_ones_within_jpeg_loss(cohort: Cohort) -> None:
    drawn = draw_slide(SMALL.size_px0, 0, np.random.default_rng(0))[0]
    assert drawn.shape == (768, 896, 3)
    read = pixels_of(cohort.slides[0])
    truth = truth_of(cohort, cohort.slides[0])
    assert abs(read[ndi.binary_erosion(truth == 0, iterations=8)].mean() - 243) < 1
    assert read[truth > 0].mean() < 215


def test_patch_labels_follow_the_truth(cohort: Cohort) -> None:
    rows = rows_of(cohort)
    assert tuple(rows[0]) == COLUMNS
    for slide in cohort.slides[:3]:
        truth = truth_of(cohort, slide)
        labels = {(int(r["x"]), int(r["y"])): r["label"] for r in rows if r["slide_id"] == slide.stem}
        for y in range(0, 768, 128):
            for x in range(0, 896, 128):
                patch = truth[y : y + 128, x : x + 128]
                expected = "tumour" if (patch == 2).mean() > 0.03 else ""
                assert labels.pop((x, y), None) == (expected if (patch > 0).mean() >= 0.25 else None)
        assert not labels
    assert {(r["width"], r["height"]) for r in rows if r["split"] == "train"} == {("128", "128")}


def test_test_slides_carry_one_slide_label(cohort: Cohort) -> None:
    (row,) = [r for r in rows_of(cohort) if r["split"] == "test"]
    assert row["slide_id"] == "test_00"
    assert row["label"] == ("tumour" if (truth_of(cohort, cohort.slides[3]) == 2).any() else "")
    assert [row[c] for c in ("x", "y", "width", "height")] == [""] * 4


def test_a_third_of_the_slides_has_no_lesion(cohort: Cohort) -> None:
    has_lesion = [bool((truth_of(cohort, slide) == 2).any()) for slide in cohort.slides]
    assert sum(has_lesion[:3]) == 2
    assert has_lesion[3]


@pytest.mark.parametrize("seed", range(20))
def test_patients_stay_on_one_side_and_have_at_most_two_slides(seed: int) -> None:
    from wsipipe.demo.cohort import _plan

    plan = _plan(CohortConfig(seed=seed))
    for patient in {p for _, _, p, _ in plan}:
        own = [split for _, split, p, _ in plan if p == patient]
        assert len(own) <= 2
        assert len(set(own)) == 1
    assert sum(lesions > 0 for _, split, _, lesions in plan if split == "test") == 3
    assert sum(lesions > 0 for _, split, _, lesions in plan if split == "train") == 7


def test_the_seed_decides_every_byte(cohort: Cohort, tmp_path: Path) -> None:
    done: list[tuple[str, int, int]] = []
    again = make_cohort(tmp_path, SMALL, on_done=lambda *step: done.append(step))
    assert done == [("train_00", 1, 4), ("train_01", 2, 4), ("train_02", 3, 4), ("test_00", 4, 4)]
    assert again.labels_csv.read_bytes() == cohort.labels_csv.read_bytes()
    for first, second in zip(cohort.slides, again.slides, strict=True):
        assert np.array_equal(pixels_of(first), pixels_of(second))
        assert np.array_equal(truth_of(cohort, first), truth_of(again, second))
    other = draw_slide(SMALL.size_px0, 1, np.random.default_rng(5))[0]
    assert not np.array_equal(other, draw_slide(SMALL.size_px0, 1, np.random.default_rng(6))[0])
