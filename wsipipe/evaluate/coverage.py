"""Which pixels were scored, in numbers and in words: a figure means nothing without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsipipe.evaluate.metrics import Confusion
from wsipipe.evaluate.slide_counts import Tally


@dataclass(frozen=True)
class Scored:
    """Pixels over all slides, as in `Tally`. `glass` is how those on glass were taken: given, scored or ignored."""

    glass: str
    slides: int
    pixels: int
    glass_px: int
    drawn_px: int
    drawn_on_glass_px: int
    answered_on_glass_px: int
    not_predicted_px: int
    ignored_px: int
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, tallies: Sequence[Tally], total: Confusion, glass: str, left_out: Mapping[str, int]) -> Scored:
        """Summed over the slides; `left_out` counts stores by what kept them out."""
        return cls(
            glass,
            len(tallies),
            total.pixels,
            sum(t.glass_px for t in tallies),
            int(sum(t.truth_px[1:].sum() for t in tallies)),
            sum(t.drawn_on_glass_px for t in tallies),
            sum(t.answered_on_glass_px for t in tallies),
            total.unpredicted,
            sum(t.ignored_px for t in tallies),
            {what: n for what, n in left_out.items() if n},
        )

    @property
    def glass_share(self) -> float:
        """Share of glass in the scored pixels; 0 where glass is ignored."""
        return self.glass_px / self.pixels if self.pixels and self.glass != "ignored" else 0.0

    @property
    def note(self) -> str:
        """All of it in words."""
        parts = [
            f"scored: {self.pixels:,} px of {self.slides} slides where the truth is not ignore",
            self._on_glass(),
            f"{_percent(self.not_predicted_px, self.pixels)} of the scored px not predicted (taken for class 0)",
            *(f"{what}: {n}" for what, n in self.left_out.items()),
        ]
        return "; ".join(parts)

    def _on_glass(self) -> str:
        share = f"{100 * self.glass_share:.1f} % of them glass"
        if self.glass == "scored":
            return f"{share}, scored like tissue"
        what = f"{share}, given: class 0 in truth and answer, by the tissue mask"
        if self.glass == "ignored":
            what = f"{self.glass_px:,} px of glass, as the tissue mask says, not scored"
        lost = []
        if self.drawn_on_glass_px:
            share = _percent(self.drawn_on_glass_px, self.drawn_px)
            lost.append(f"{self.drawn_on_glass_px:,} px of named classes in the truth ({share} of them)")
        if self.answered_on_glass_px:
            lost.append(f"{self.answered_on_glass_px:,} px in the answer")
        return f"{what} (not counted there: {' and '.join(lost)})" if lost else what


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0.0:.1f} %"
