"""Which pixels were scored, in numbers and in words: without them a score has no meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsipipe.evaluate.confusion import Confusion
from wsipipe.evaluate.slide_counts import SlideCounts


@dataclass(frozen=True)
class Coverage:
    """Pixels over all slides, as in `SlideCounts`. `glass`: how glass is scored (given, scored or ignored).

    left_out: what was left out -> how many slides or stores.
    """

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
    def of(cls, slides: Sequence[SlideCounts], total: Confusion, glass: str, left_out: Mapping[str, int]) -> Coverage:
        """The sums over the slides; entries of `left_out` that are 0 are dropped."""
        return cls(
            glass,
            len(slides),
            total.pixels,
            sum(s.glass_px for s in slides),
            int(sum(s.truth_px[1:].sum() for s in slides)),
            sum(s.drawn_on_glass_px for s in slides),
            sum(s.answered_on_glass_px for s in slides),
            total.unpredicted,
            sum(s.ignored_px for s in slides),
            {what: n for what, n in left_out.items() if n},
        )

    @property
    def glass_share(self) -> float:
        """Fraction of the scored pixels that are glass; 0 where glass is ignored."""
        return self.glass_px / self.pixels if self.pixels and self.glass != "ignored" else 0.0

    @property
    def lines(self) -> list[str]:
        """All of it in words, a statement per line."""
        missing = _percent(self.not_predicted_px, self.pixels)
        return [
            f"scored: {self.pixels:,} px of {self.slides} slides, where the truth is not ignore",
            self._glass_line(),
            *self._dropped_lines(),
            f"ignore (255) in the masks, scored as background: {missing} of the scored px",
            *(f"{what}: {n}" for what, n in self.left_out.items()),
        ]

    @property
    def note(self) -> str:
        """The lines as one."""
        return "; ".join(self.lines)

    def _glass_line(self) -> str:
        if self.glass == "ignored":
            return f"glass (tissue mask), not scored: {self.glass_px:,} px"
        how = "scored like tissue" if self.glass == "scored" else "background in truth and answer"
        return f"glass (tissue mask), {how}: {100 * self.glass_share:.1f} % of the scored px"

    def _dropped_lines(self) -> list[str]:
        """What the rule for glass takes away from truth and answer."""
        lines = []
        if self.glass != "scored" and self.drawn_on_glass_px:
            share = _percent(self.drawn_on_glass_px, self.drawn_px)
            lines.append(f"classes drawn on glass, not scored: {self.drawn_on_glass_px:,} px ({share} of those drawn)")
        if self.glass != "scored" and self.answered_on_glass_px:
            lines.append(f"classes predicted on glass, not scored: {self.answered_on_glass_px:,} px")
        return lines


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0.0:.1f} %"
