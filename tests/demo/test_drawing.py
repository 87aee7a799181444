"""Check that a drawn slide keeps its promises: lesions of the stated size, told apart by structure, not by colour."""

import numpy as np
import pytest
from scipy import ndimage as ndi

from wsipipe.demo.drawing import draw_slide


@pytest.mark.parametrize("lesions", [1, 2, 4])
def test_lesions_fill_the_promised_share(lesions: int) -> None:
    for seed in range(2):
        truth = draw_slide((896, 768), lesions, np.random.default_rng(seed))[1]
        assert 0.02 <= (truth == 2).sum() / (truth > 0).sum() <= 0.30
        assert 0.4 < (truth > 0).mean() < 0.75


def test_tumour_and_normal_tissue_share_their_mean_colour() -> None:
    rgb, truth = draw_slide((1536, 1536), 3, np.random.default_rng(1))
    means = [rgb[ndi.binary_erosion(truth == kind, iterations=4)].mean(0) for kind in (1, 2)]
    spread = rgb[truth > 0].std(0)
    assert (np.abs(means[0] - means[1]) < 0.35 * spread).all()
