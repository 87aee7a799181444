"""Prediction that is interrupted: wherever a run dies, the next one ends with the same bytes."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from support.stitching import bytes_of
from support.two_colours import CountingNet, SureNet
from support.types import MakePath

from wsipipe.config.options import RunConfig, StitchConfig
from wsipipe.runtime.context import RunContext
from wsipipe.segment import predict, stitch
from wsipipe.segment.predict import predict_stores
from wsipipe.store import SlideStore
from wsipipe.store.map_writer import ResumableMapWriter

SMALL = StitchConfig(score_stride_px=1)


def leftovers(store: SlideStore) -> list[str]:
    return sorted(p.name for p in store.path.parent.iterdir() if ".maps." in p.name)


def test_a_run_that_dies_at_any_call_goes_on_to_the_same_bytes(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes no shard twice: together both runs see little more than the windows of one."""
    monkeypatch.setattr(predict, "SHARD_PX", 256)
    monkeypatch.setattr(stitch, "MOST_SHARDS_WIDE", 1)
    monkeypatch.setattr(predict, "BATCH_PX", 6 * 64**2)
    store = stores["left"]
    config = dataclasses.replace(SMALL, score_stride_px=12, overlap=0.25)
    whole_run = CountingNet()
    predict_stores([store], checkpoint_of(whole_run), config, RunContext(run))
    expected = bytes_of(store, "unet")
    assert len(expected) > 8
    seen = []
    for n in range(1, whole_run.calls + 1):
        for kind in ("labels", "scores"):
            shutil.rmtree(store.path / kind / "unet")
        first, second = CountingNet(dies_at=n), CountingNet()
        with pytest.raises(KeyboardInterrupt):
            predict_stores([store], checkpoint_of(first), config, RunContext(run))
        assert store.names("scores") == []
        assert leftovers(store) == [f".{store.path.name}.maps.unet.partial"]
        report, _ = predict_stores([store], checkpoint_of(second), config, RunContext(run))
        assert report.rows[0]["status"] == "done"
        assert bytes_of(store, "unet") == expected
        assert leftovers(store) == []
        seen.append(second.windows)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == whole_run.windows
    assert seen[-1] <= whole_run.windows / 2


@pytest.mark.parametrize("where", ["_finish_scores", "put"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_run_that_dies_at_the_end_only_ends_it(
    stores: dict[str, SlideStore],
    run: RunConfig,
    checkpoint_of: MakePath,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    call: int,
) -> None:
    store, calls = stores["left"], []
    predict_stores([store], checkpoint_of(CountingNet()), SMALL, RunContext(run))
    expected = bytes_of(store, "unet")
    for kind in ("labels", "scores"):
        shutil.rmtree(store.path / kind / "unet")
    owner = ResumableMapWriter if where == "_finish_scores" else SlideStore
    original = getattr(owner, where)

    def dies(self: object, *args: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, dies)
        if where == "put" or call == 1:
            with pytest.raises(KeyboardInterrupt):
                predict_stores([store], checkpoint_of(CountingNet()), SMALL, RunContext(run))
        else:
            predict_stores([store], checkpoint_of(CountingNet()), SMALL, RunContext(run))
    again = CountingNet()
    predict_stores([SlideStore(store.path)], checkpoint_of(again), SMALL, RunContext(run))
    assert again.calls == 0
    assert bytes_of(store, "unet") == expected
    assert leftovers(store) == []


def test_what_was_begun_with_other_settings_is_not_gone_on_with(
    stores: dict[str, SlideStore], run: RunConfig, checkpoint_of: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "SHARD_PX", 256)
    store = stores["left"]
    with pytest.raises(KeyboardInterrupt):
        predict_stores([store], checkpoint_of(CountingNet(dies_at=2), digest="one"), SMALL, RunContext(run))
    predict_stores([store], checkpoint_of(SureNet(), digest="two"), SMALL, RunContext(run))
    expected = bytes_of(store, "unet")
    predict_stores([store], checkpoint_of(SureNet(), digest="two"), SMALL, RunContext(run), "fresh")
    fresh = {k.replace("/fresh/", "/unet/"): v for k, v in bytes_of(store, "fresh").items()}
    assert {k: v for k, v in expected.items() if "/c/" in k} == {k: v for k, v in fresh.items() if "/c/" in k}
