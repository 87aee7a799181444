"""What labels say of slides: splits, patients, and which classes a whole slide holds."""

from __future__ import annotations

from collections.abc import Callable

from wsipipe.evaluate.cohort import Cohort
from wsipipe.labels import LabelTable


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
