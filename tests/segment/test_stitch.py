"""Maps by strips and shards: the same bytes for every width, batch and thread, holes exactly where nothing covers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from support.stitching import mapped, noisy, reader, slow, slow_scores, subset

from wsipipe.errors import ConfigError
from wsipipe.geometry import Window
from wsipipe.segment import stitch as module
from wsipipe.segment.stitch import Stitching, StripPlan, fit_to_budget, needed_bytes, stitcher
from wsipipe.windows import BLENDS, WindowLattice

plans = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 90), st.integers(1, 90)),
        "window": st.integers(4, 24),
        "share": st.floats(0.3, 1.3),
        "cell": st.integers(1, 9),
        "shard": st.sampled_from([8, 16, 32]),
        "seed": st.integers(0, 99),
    }
)


def plan_of(drawn: dict, width: int | None = None) -> StripPlan:
    stride = max(2, round(drawn["window"] * drawn["share"]))
    cover = subset(WindowLattice.plan(drawn["size"], drawn["window"], stride), drawn["seed"], 0.6)
    return StripPlan(drawn["size"], cover, width or 2 * drawn["shard"], drawn["cell"], drawn["shard"])


@given(plans, st.sampled_from(BLENDS))
@examples(25)
def test_a_map_is_what_a_slow_stitcher_says(drawn: dict, blend: str) -> None:
    drawn["size"] = min(drawn["size"][0], 40), min(drawn["size"][1], 40)
    plan = plan_of(drawn)
    stride = max(2, round(drawn["window"] * drawn["share"]))
    chosen = set(plan.cover.touching(Window(0, 0, *plan.size_px)))
    weigh = (lambda i: 1.0) if blend == "constant" else None
    p = slow(noisy, plan.size_px, drawn["window"], stride, chosen.__contains__, weigh)
    mask, scores, _ = mapped(plan, noisy, blend)
    known = ~np.isnan(p[0])
    np.testing.assert_array_equal(mask == 255, ~known)
    top = np.sort(np.nan_to_num(p), axis=0)
    sure = known & (top[-1] - top[-2] > 1e-5)
    np.testing.assert_array_equal(mask[sure], np.nan_to_num(p).argmax(0)[sure])
    np.testing.assert_allclose(scores / 255, slow_scores(p[1:], plan.cell_px), atol=0.501 / 255)


@given(plans, st.data())
@examples(40)
def test_the_bytes_do_not_depend_on_strips_shards_batches_or_threads(drawn: dict, data: st.DataObject) -> None:
    whole = max(64, 16 * drawn["shard"])
    one = mapped(StripPlan(drawn["size"], plan_of(drawn).cover, whole, drawn["cell"], whole), noisy)
    widths = [drawn["shard"] * n for n in (1, 2, 3)] + [drawn["shard"] // n for n in (2, 4)]
    plan = plan_of(drawn, data.draw(st.sampled_from(widths)))
    mask, scores, order = mapped(plan, noisy, "hann", data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4)))
    np.testing.assert_array_equal(mask, one[0])
    np.testing.assert_array_equal(scores, one[1])
    assert sorted(order) == plan.wanted()


@given(plans)
@examples(25)
def test_a_network_that_returns_its_input_gives_it_back(drawn: dict) -> None:
    width, height = drawn["size"]
    red = np.random.default_rng(drawn["seed"]).random((height, width), np.float32)
    stride = min(drawn["window"], max(2, round(drawn["window"] * drawn["share"])))
    plan = StripPlan(
        drawn["size"], WindowLattice.plan(drawn["size"], drawn["window"], stride), drawn["shard"], 1, drawn["shard"]
    )
    mask, scores, _ = mapped(plan, reader(np.stack([1 - red, red])))
    assert np.abs(scores[0] - red * 255).max() <= 0.51
    sure = np.abs(red - 0.5) > 1e-4
    np.testing.assert_array_equal(mask[sure], (red > 0.5)[sure])


def test_only_what_is_wanted_is_asked_and_nothing_is_written_elsewhere() -> None:
    size = (300, 200)
    cover = WindowLattice.plan(size, 16, 8, [Window(130, 70, 10, 10)])
    plan = StripPlan(size, cover, 64, 4, 64)
    asked: list[Window] = []

    def ones(windows: list[Window]) -> np.ndarray:
        asked.extend(windows)
        return np.stack([np.zeros((len(windows), 16, 16), np.float32), np.ones((len(windows), 16, 16), np.float32)], 1)

    mask, scores, order = mapped(plan, ones)
    covered = np.zeros((200, 300), bool)
    for w in cover.touching(Window(0, 0, *size)):
        covered[w.y_px : w.y_px + 16, w.x_px : w.x_px + 16] = True
    np.testing.assert_array_equal(mask, np.where(covered, 1, 255))
    np.testing.assert_array_equal(scores[0] > 0, covered.reshape(50, 4, 75, 4).any((1, 3)))
    assert sorted(order) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    nothing = StripPlan(size, WindowLattice.plan(size, 16, 8, []), 64, 4, 64)
    assert nothing.wanted() == []
    assert list(stitcher(nothing, 2, "hann", pytest.fail).windows()) == []


def test_windows_over_a_seam_are_asked_once_a_strip_and_all_others_once() -> None:
    size, side, stride = (96, 80), 16, 8
    cover = WindowLattice.plan(size, side, stride)
    for width, seams in ((64, [64]), (32, [32, 64]), (128, [])):
        stitch = stitcher(StripPlan(size, cover, width, 1, 32), 2, "hann", pytest.fail)
        asked = [window for _, window in stitch.windows()]
        assert len(asked) == stitch.count()
        for window in cover.touching(Window(0, 0, *size)):
            over = sum(window.x_px < seam < window.x_px + side for seam in seams)
            assert asked.count(window) == 1 + over


def test_a_strip_goes_on_below_the_shards_that_are_done() -> None:
    plan = StripPlan((100, 130), WindowLattice.plan((100, 130), 16, 8), 64, 1, 32)
    assert list(plan.strips(set(plan.wanted()))) == [Window(0, 0, 64, 130), Window(64, 0, 36, 130)]
    left = set(plan.wanted()) - {(0, 0), (0, 1), (1, 0), (3, 2), (3, 3)}
    assert list(plan.strips(left)) == [Window(0, 32, 64, 98), Window(64, 0, 36, 96), Window(64, 128, 36, 2)]
    narrow = StripPlan((100, 130), plan.cover, 16, 1, 32)
    assert list(narrow.strips({(4, 3), (1, 0)})) == [
        Window(0, 32, 16, 32),
        Window(16, 32, 16, 32),
        Window(96, 128, 4, 2),
    ]


@given(plans, st.data())
@examples(40)
def test_shards_that_are_done_are_not_made_again_and_the_others_have_the_same_bytes(
    drawn: dict, data: st.DataObject
) -> None:
    plan = plan_of(drawn, drawn["shard"] * data.draw(st.sampled_from([1, 2])))
    made: dict = {}
    for done in ((), data.draw(st.sets(st.sampled_from(plan.wanted()))) if plan.wanted() else ()):
        found: dict = {}
        stitch = stitcher(
            plan, 3, "hann", lambda s, m, v, found=found: found.update({s: (m.tobytes(), v.tobytes())}), done
        )
        for items in itertools.batched(stitch.windows(), 3) if hasattr(itertools, "batched") else _threes(stitch):
            stitch.add(items, noisy([window for _, window in items]))
        stitch.end()
        assert set(found) == set(plan.wanted()) - set(done)
        made = made or found
        assert found == {s: made[s] for s in found}


def _threes(stitch: module.Stitcher) -> list:
    items = list(stitch.windows())
    return [items[i : i + 3] for i in range(0, len(items), 3)]


def test_the_budget_decides_on_batch_and_width_and_is_kept() -> None:
    how = Stitching(256, 128)
    assert fit_to_budget(how, 4, 16) == (16, 8192)
    assert needed_bytes(how, 4, 16, 8192) < 256e6
    options = [fit_to_budget(Stitching(256, 128, memory_mb=mb), 4, 16) for mb in (512, 170, 120, 80, 60, 40)]
    assert options == sorted(options, key=lambda o: needed_bytes(how, 4, *o), reverse=True)
    assert len(set(options)) > 3
    for mb, option in zip((512, 170, 120, 80, 60, 40), options, strict=True):
        assert needed_bytes(how, 4, *option) <= mb * 1e6
    assert options[-1][1] < 4096


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    with pytest.raises(
        ConfigError, match=r"stitch.memory_mb: 10 MB are too few for windows of 512 px and 3 classes: (\d+) MB"
    ) as e:
        fit_to_budget(Stitching(512, 256, memory_mb=10), 4, 4)
    least = int(str(e.value).split(" MB are needed")[0].split()[-1])
    assert fit_to_budget(Stitching(512, 256, memory_mb=least), 4, 4)[0] == 1
    with pytest.raises(ConfigError):
        fit_to_budget(Stitching(512, 256, memory_mb=least - 1), 4, 4)
