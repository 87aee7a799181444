"""What labels say of slides (splits, patients, classes of a whole slide), and which stores a split holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsipipe.errors import ConfigError
from wsipipe.evaluate.cohort import Cohort, select
from wsipipe.labels import LabelTable
from wsipipe.store import SlideStore


def test_rows_by_slide_with_or_without_the_suffix_of_the_file(table: Callable[[str], LabelTable]) -> None:
    text = "slide_id,label,split,patient_id\ns1.svs,a;b,test,p1\ns2,,train,p2\ns.3,a,train,\n"
    cohort = Cohort.of(table(text), ["s1", "s2", "s.3"])
    assert cohort.split == {"s1": "test", "s2": "train", "s.3": "train"}
    assert cohort.patient == {"s1": "p1", "s2": "p2"}
    assert [cohort.holds("s1", n) for n in ("a", "b", "c")] == [True, True, None]
    assert cohort.holds("s2", "a") is False
    assert cohort.holds("other", "a") is None
    assert [cohort.is_negative(s) for s in ("s1", "s2", "other")] == [False, True, False]


def test_labels_of_regions_say_nothing_of_the_slide(table: Callable[[str], LabelTable]) -> None:
    text = "slide_id,label,x,y,width,height\ns1,a,0,0,9,9\ns1,,9,0,9,9\n"
    cohort = Cohort.of(table(text), ["s1"])
    assert cohort.holds("s1", "a") is None
    assert not cohort.is_negative("s1")


def test_no_labels() -> None:
    assert Cohort.of(None, ["s1"]) == Cohort()


def test_the_stores_of_a_split(make_store: Callable[..., Path], table: Callable[[str], LabelTable]) -> None:
    tissue = np.ones((4, 4), np.uint8)
    stores = [SlideStore(make_store(name, tissue)) for name in ("a", "b.1", "c")]
    labels = table("slide_id,label,split\na.svs,x,test\nb.1,,test\nc.svs,,train\n")
    for split, expected in (("", ["a", "b.1", "c"]), ("test", ["a", "b.1"]), ("train", ["c"])):
        chosen, cohort = select(stores, labels, split)
        assert [s.slide_id for s in chosen] == expected
        assert cohort.split == {"a": "test", "b.1": "test", "c": "train"}
    with pytest.raises(ConfigError, match="none of the 3 stores is in split 'val'"):
        select(stores, labels, "val")
    with pytest.raises(ConfigError, match="'test' needs a labels file with splits; see --labels"):
        select(stores, None, "test")
    with pytest.raises(ConfigError, match="no stores to evaluate"):
        select([], labels, "")
