"""What a labels file says of the slides that are judged: their split, their patient, and which classes they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsipipe.errors import check
from wsipipe.labels import LabelTable, match_slide_id


@dataclass(frozen=True)
class Cohort:
    """By slide id; a slide of which nothing is said is not in the mapping.

    present: the classes that the label of the whole slide names, empty for a negative. classes: those that labels know.
    """

    split: dict[str, str] = field(default_factory=dict)
    patient: dict[str, str] = field(default_factory=dict)
    present: dict[str, frozenset[str]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: LabelTable | None, slides: Sequence[str]) -> Cohort:
        """The rows of `slides`; a row may name a slide with the suffix of its file (`a.svs`)."""
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
        """Whether the label of a whole slide names a class; None if no label says so or the class is not of them."""
        return name in self.present[slide] if slide in self.present and name in self.classes else None

    def is_negative(self, slide: str) -> bool:
        """Whether the label of a whole slide says that it holds no class."""
        return slide in self.present and not self.present[slide]


@dataclass(frozen=True)
class EvaluateInputs:
    """Paths of the stores to evaluate, and what labels.csv says of their slides, if it is given."""

    stores: Sequence[Path]
    labels: LabelTable | None = None

    def cohort(self, split: str) -> Cohort:
        """What the labels say of the slides; ConfigError if a split is asked for and there are none."""
        check(not split or self.labels is not None, f"evaluate.split: {split!r} needs a labels file with splits")
        return Cohort.of(self.labels, [p.stem for p in self.stores])
