"""The result of an evaluation: answers, their spread over patients, slides, lesions and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from numpy import bool_
from numpy.typing import NDArray

from wsipipe.evaluate.calibration import Reliability, slide_reliability
from wsipipe.evaluate.confusion import Confusion, Floats
from wsipipe.evaluate.coverage import Coverage
from wsipipe.evaluate.detections import SlideDetections
from wsipipe.evaluate.froc import Froc
from wsipipe.evaluate.metrics import scores_of
from wsipipe.runtime.ledger import Report

Names = tuple[str, ...]

EMPTY = "empty"
"""The trivial answer that no pixel belongs to a named class."""

Interval = tuple[Floats, Floats]
"""The lower and the upper ends of 95 % intervals."""


@dataclass(frozen=True, eq=False)
class Spread:
    """How metrics vary between groups (patients, or slides without patients): intervals, or the values of few groups.

    Metrics by name, as in `metrics.scores_of`: [C] per class, [] pooled.
    """

    intervals: Mapping[str, Interval] = field(default_factory=dict)
    by_group: Mapping[str, Mapping[str, Floats]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SlideLevel:
    """Scores float64 and truth bool [slides, K]: the score of every slide and class, and whether it holds the class.

    auc: float64 [K]. intervals: its 95 % interval, None below LEAST_GROUPS groups. source: where the truth is from.
    """

    scores: Floats
    truth: NDArray[bool_]
    auc: Floats
    intervals: Interval | None
    source: str

    def calibration(self) -> list[Reliability]:
        """Per class, the scores of slides against whether they hold the class."""
        return [slide_reliability(s, t) for s, t in zip(self.scores.T, self.truth.T, strict=True)]


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate.stage.run`.

    answers: the evaluated masks first, by their name, over all `classes`; then the trivial answers "empty" (class 0
    everywhere), "all tissue is <class>" and "all tissue of slides with <class>". groups: the patient of each of the
    `slides`, or the slide itself. coverage: which pixels were scored. report: the ledger. spread: by answer.
    slide_level, pixel_calibration (per class): None without scores. froc (by class), detections: None without scores or
    detections.
    """

    classes: Names
    answers: Mapping[str, Confusion]
    slides: Names
    coverage: Coverage
    report: Report
    groups: Names = ()
    spread: Mapping[str, Spread] = field(default_factory=dict)
    slide_level: SlideLevel | None = None
    pixel_calibration: list[Reliability] | None = None
    froc: Mapping[str, Froc] | None = None
    detections: SlideDetections | None = None

    @property
    def name(self) -> str:
        """The name of the evaluated masks."""
        return next(iter(self.answers))

    @property
    def grouped_by(self) -> str:
        """What the groups are, with their number: "9 slides", "4 patients"."""
        is_slide = set(self.groups) <= set(self.slides)
        return f"{len(set(self.groups))} {'slides' if is_slide else 'patients'}"

    def intervals(self, answer: str) -> Mapping[str, Interval]:
        """The 95 % intervals of an answer by metric; empty below LEAST_GROUPS groups."""
        return self.spread.get(answer, Spread()).intervals

    def metrics(self, answer: str = "") -> dict[str, Floats]:
        """Every pixel metric of an answer (default: the evaluated masks) by name: [C] per class, [] pooled."""
        return scores_of(self.answers[answer or self.name].matrix)

    def of_interest(self, answer: str) -> list[tuple[int, str]]:
        """(mask value, name) of the classes that an answer is about; of a trivial one, the class that it predicts."""
        every = list(enumerate(self.classes, start=1))
        return [(k, n) for k, n in every if answer in trivial_answers(n)] or every


def trivial_answers(name: str) -> tuple[str, str]:
    """Names of the answers that predict a class on all tissue, and on all tissue of the slides that hold it."""
    return f"all tissue is {name}", f"all tissue of slides with {name}"
