"""Which stores are evaluated, and the labels of their slides: split, patient and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsipipe.errors import check
from wsipipe.labels import LabelTable, match_slide_id
from wsipipe.store import SlideStore


@dataclass(frozen=True)
class EvaluateInputs:
    """Paths of the stores to evaluate, and the labels of their slides, if there are any."""

    stores: Sequence[Path]
    labels: LabelTable | None = None


@dataclass(frozen=True)
class Cohort:
    """Labels by slide id; a mapping leaves out a slide that has no such label.

    present: the classes in the label of the whole slide, empty for a negative slide. classes: all classes of the table.
    """

    split: dict[str, str] = field(default_factory=dict)
    patient: dict[str, str] = field(default_factory=dict)
    present: dict[str, frozenset[str]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: LabelTable | None, slides: Sequence[str]) -> Cohort:
        """The labels of `slides`; a row may name a slide by its file (`a.svs`), see `match_slide_id`."""
        if table is None:
            return cls()
        known = set(slides)
        found = cls(classes=table.classes.names)
        for row in table.rows:
            slide = match_slide_id(row.slide_id, known)
            found.split[slide] = row.split
            if row.patient_id:
                found.patient[slide] = row.patient_id
            if row.box_px0 is None:
                found.present[slide] = frozenset(n for n, on in zip(found.classes, row.present, strict=True) if on)
        return found

    def is_in(self, slide: str, split: str) -> bool:
        """Whether a slide belongs to a split; every slide belongs to the split ""."""
        return not split or self.split.get(slide) == split

    def holds(self, slide: str, name: str) -> bool | None:
        """Whether the label of the whole slide names a class; None without such a label, or if no row has the class."""
        return name in self.present[slide] if slide in self.present and name in self.classes else None

    def is_negative(self, slide: str) -> bool:
        """Whether the label of the whole slide names no class."""
        return slide in self.present and not self.present[slide]


def select(stores: Sequence[SlideStore], labels: LabelTable | None, split: str) -> tuple[list[SlideStore], Cohort]:
    """The stores whose slides are in `split` ("": all stores), and the labels of all slides.

    This is the one rule for which stores belong to a split. Raises ConfigError if there is none, or no labels.
    """
    check(not split or labels is not None, f"evaluate.split: {split!r} needs a labels file with splits; see --labels")
    check(bool(stores), "no stores to evaluate; run `wsipipe tile` first, or name the stores")
    cohort = Cohort.of(labels, [s.slide_id for s in stores])
    chosen = [s for s in stores if cohort.is_in(s.slide_id, split)]
    check(bool(chosen), f"none of the {len(stores)} stores is in split {split!r} of the labels file")
    return chosen, cohort
