"""The pool holds windows of patches, is shared evenly over slides, and views of it keep their bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.config.options import PretrainConfig
from wsipipe.geometry import Window
from wsipipe.nn.augment import STAIN_STRENGTH, stain_jitter
from wsipipe.nn.train import generator
from wsipipe.pretrain import views as module
from wsipipe.pretrain.views import Pool, Views, patch_pool
from wsipipe.store import SlideStore

ROOM_FOR_16 = 16 * 3 * 24 * 24
"""Bytes of 16 windows."""


def test_the_pool_holds_four_windows_of_one_and_a_half_inputs_a_patch(three: list[SlideStore]) -> None:
    pool = patch_pool(three, 16, 2, 0)
    assert pool.patches.dtype == np.uint8
    assert pool.patches.shape == (4 * (8 + 2), 3, 24, 24)
    assert pool.slide.tolist() == [0] * 32 + [1] * 8


def test_what_the_pool_holds_are_shrunk_windows_of_the_patches(three: list[SlideStore]) -> None:
    small = three[1]
    whole = small.read(Window(0, 0, 128, 64)).astype(float)
    every = set()
    for x in range(0, 128 - 47):
        for y in range(0, 64 - 47):
            part = whole[y : y + 48, x : x + 48].reshape(24, 2, 24, 2, 3).mean((1, 3))
            every.add(np.floor(part + 0.5).astype(np.uint8).transpose(2, 0, 1).tobytes())
    pool = patch_pool([small], 16, 2, 0)
    assert all(p.tobytes() in every for p in pool.patches)


def test_a_patch_smaller_than_one_and_a_half_inputs_gives_windows_of_its_own_size(three: list[SlideStore]) -> None:
    assert patch_pool(three[:2], 28, 2, 0).patches.shape[2:] == (32, 32)
    assert patch_pool(three[:2], 32, 2, 0).patches.shape[2:] == (32, 32)


def test_a_full_pool_is_shared_evenly_over_slides_and_keeps_to_its_memory(
    three: list[SlideStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POOL_BYTES", ROOM_FOR_16)
    pool = patch_pool(three[:2], 16, 2, 0)
    assert np.bincount(pool.slide).tolist() == [8, 8]
    assert pool.patches.nbytes <= module.POOL_BYTES
    dark = pool.patches.mean((1, 2, 3)) < 120
    assert dark.tolist() == [False] * 8 + [True] * 8


def test_the_seed_decides_which_windows_the_pool_takes(three: list[SlideStore]) -> None:
    pools = [patch_pool(three, 16, 2, seed).patches for seed in (0, 0, 1)]
    assert np.array_equal(pools[0], pools[1])
    assert not np.array_equal(pools[0], pools[2])


def test_without_any_patch_the_pool_is_empty_but_has_its_shape(three: list[SlideStore]) -> None:
    assert patch_pool([three[2]], 16, 2, 0).patches.shape == (0, 3, 24, 24)


def numbered(counts: list[int]) -> Pool:
    """A pool whose patches carry their own number as grey value."""
    n = sum(counts)
    patches = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, 2, 2)).copy()
    return Pool(patches, np.repeat(np.arange(len(counts)), counts))


def test_every_slide_is_drawn_as_often_however_few_patches_it_has() -> None:
    pool = numbered([1, 9, 90])
    x = (pool.draw(6000, generator(0)) * 255).round().long()[:, 0, 0, 0]
    slides = torch.from_numpy(pool.slide)[x]
    shares = torch.bincount(slides, minlength=3) / 6000
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    within = torch.bincount(x[slides == 2] - 10, minlength=90)
    assert int(within.min()) > 0, "some patch is never drawn"
    assert torch.equal(pool.draw(5, generator(7)), pool.draw(5, generator(7)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0, 0.9), st.integers(0, 99))
def test_held_aside_patches_and_the_rest_are_the_pool_and_none_is_in_both(
    counts: list[int], share: float, seed: int
) -> None:
    pool = numbered(counts)
    learn, aside = pool.split(share, seed)
    ids = [sorted(p.patches[:, 0, 0, 0].tolist()) for p in (learn, aside)]
    assert sorted(ids[0] + ids[1]) == list(range(len(pool)))
    taken = [sum(pool.slide[i] == s for i in ids[1]) for s in range(len(counts))]
    assert taken == [round(n * share) for n in counts]
    for part in (learn, aside):
        assert sorted(set(part.slide.tolist())) == list(range(len(set(part.slide.tolist()))))


def test_no_more_is_held_aside_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_OUT", 10)
    assert len(numbered([50, 50]).split(0.5, 0)[1]) == 10


def test_a_view_has_the_size_of_the_input_and_stays_in_range() -> None:
    x = torch.rand(16, 3, 24, 24, generator=generator(1))
    y = Views(16).draw(x, generator(2))
    assert y.shape == (16, 3, 16, 16)
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    assert torch.equal(y, Views(16).draw(x, generator(2)))
    assert not torch.equal(y, Views(16).draw(x, generator(3)))


def test_pretraining_perturbs_stain_as_other_training_does() -> None:
    assert PretrainConfig().stain_jitter == STAIN_STRENGTH


def test_without_stain_jitter_a_view_keeps_the_colour() -> None:
    colour = torch.rand(16, 3, 1, 1, generator=generator(1)) * 0.9 + 0.05
    x = colour.expand(16, 3, 24, 24)
    torch.testing.assert_close(Views(16, 0.0).draw(x, generator(2)), colour.expand(16, 3, 16, 16), atol=1e-3, rtol=0)
    assert float((Views(16).draw(x, generator(2)) - colour).abs().max()) > 0.02


@pytest.mark.parametrize("colour", [(0.85, 0.62, 0.78), (0.41, 0.24, 0.56)], ids=["pale pink", "nucleus"])
def test_the_stain_change_of_a_view_is_of_a_known_size(colour: tuple[float, float, float]) -> None:
    """Ten times too strong or too weak (stains are scaled differently elsewhere) would fall out of these bounds."""
    x = torch.tensor(colour).view(1, 3, 1, 1).expand(2000, 3, 2, 2).contiguous()
    change = (stain_jitter(x, STAIN_STRENGTH, generator(0)) - x)[:, :, 0, 0] * 255
    assert 6 < float(change.abs().mean()) < 15
    assert 25 < float(change.abs().max()) < 55
    assert float(change.mean(0).abs().max()) < 2.5
