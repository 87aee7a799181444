"""What an evaluation holds: answers, how they spread over patients, slides, lesions and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from numpy import bool_
from numpy.typing import NDArray

from wsipipe.evaluate.calibration import Reliability, slide_reliability
from wsipipe.evaluate.coverage import Scored
from wsipipe.evaluate.detections import Found
from wsipipe.evaluate.froc import Froc
from wsipipe.evaluate.metrics import Confusion, Floats
from wsipipe.runtime.ledger import Report

Names = tuple[str, ...]

EMPTY = "empty"
"""The answer that no pixel is of a named class."""
Interval = tuple[Floats, Floats]


@dataclass(frozen=True, eq=False)
class Spread:
    """How scores differ over groups (patients, or slides where none is given): intervals, or values of few groups.

    Scores by name as in `bootstrap.pixel_scores`: [C] for dice and iou, [] for the others.
    """

    intervals: Mapping[str, Interval] = field(default_factory=dict)
    by_group: Mapping[str, Mapping[str, Floats]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SlideLevel:
    """Of every slide and class, float64 and bool [slides, K]: the score, and whether the slide holds the class.

    auc: float64 [K]. intervals: its 95 % interval, None below LEAST_GROUPS groups. source: where the truth is from.
    """

    scores: Floats
    truth: NDArray[bool_]
    auc: Floats
    intervals: Interval | None
    source: str

    def calibration(self) -> list[Reliability]:
        """Of each class, the slide's score against whether it holds the class."""
        return [slide_reliability(s, t) for s, t in zip(self.scores.T, self.truth.T, strict=True)]


@dataclass(frozen=True)
class Evaluation:
    """What came out. `answers` begins with the judged labels, by their name, over all `classes`.

    The trivial answers follow: "empty" (class 0 everywhere), "all tissue is <class>" and "all tissue of slides with
    <class>". `slides` were judged, `groups` says what each belongs to, `scored` which pixels were scored, `report`
    holds the failed stores. spread: of each answer. slide_level, pixel_calibration (of each class): None without
    scores. froc (by class), detections: None without scores or detections.
    """

    classes: Names
    answers: Mapping[str, Confusion]
    slides: Names
    scored: Scored
    report: Report
    groups: Names = ()
    spread: Mapping[str, Spread] = field(default_factory=dict)
    slide_level: SlideLevel | None = None
    pixel_calibration: list[Reliability] | None = None
    froc: Mapping[str, Froc] | None = None
    detections: Found | None = None

    @property
    def note(self) -> str:
        """Which pixels were scored, in words."""
        return self.scored.note

    def of_interest(self, answer: str) -> list[tuple[int, str]]:
        """(mask value, name) of the classes that an answer is about: of a trivial one, the class that it gives."""
        every = list(enumerate(self.classes, start=1))
        return [(k, n) for k, n in every if answer in trivial_answers(n)] or every


def trivial_answers(name: str) -> tuple[str, str]:
    """How the answers are called that give a class to all tissue, and to all tissue of the slides that hold it."""
    return f"all tissue is {name}", f"all tissue of slides with {name}"
