"""The table of ratios as markdown: what was asked for, what was measured, and on what machine."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

MOST_MIB = 512
MOST_GROWTH = 1.05


@dataclass(frozen=True)
class Ratio:
    """A row of the table: the speed of `own` over that of the fastest of `peers`, round by round.

    clock: which seconds of wsipipe count, `seconds` (the whole command, without start-up) or `shards` (level 0 only).
    at_least: what the ratio has to reach, None where it is only reported.
    """

    job: str
    own: str
    against: str
    peers: tuple[str, ...]
    at_least: float | None
    clock: str = "seconds"


@dataclass
class Outcome:
    """The answers of one contestant, a round each; `reason` says why there are none (or no more)."""

    label: str
    answers: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""

    def rates(self, clock: str = "seconds") -> list[float]:
        """Tiles a second in every round."""
        return [] if self.reason else [a["tiles"] / a[clock] for a in self.answers]


@dataclass
class Results:
    """All that was measured. memory: name of the job -> side of the slide in px -> MiB of every run, or the reason."""

    ratios: list[Ratio] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    memory: dict[str, dict[int, list[float] | str]] = field(default_factory=dict)


def markdown(results: Results, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """The whole page."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = ["# Tiling and random reads: wsipipe against peers and limits", "", f"{today}.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    if results.ratios:
        lines += ["", "## Speed of wsipipe over the speed of the other", ""]
        lines += _table(("job", "against", "ratio: median (min-max)", "at least", ""), map(_row, *_pairs(results)))
    if results.memory:
        lines += ["", f"## Peak memory of `wsipipe tile`, at most {MOST_MIB} MiB, whatever the size of the slide", ""]
        lines += _memory(results.memory)
    if results.outcomes:
        lines += ["", "## Rates behind the ratios", ""]
        rows = [row for o in results.outcomes.values() for row in _rates(o)]
        lines += _table(("", "tiles", "tiles/s: median (min-max)", "processor ms/tile"), rows)
    return "\n".join([*lines, "", "## Notes", "", *(f"- {n}" for n in notes), ""])


def machine() -> str:
    """Processor, cores, memory and system, in words."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{model or platform.processor()}, {cores} cores, {gib:.0f} GiB, {platform.system()} {platform.release()}"


def _pairs(results: Results) -> tuple[list[Ratio], list[dict[str, Outcome]]]:
    return results.ratios, [results.outcomes] * len(results.ratios)


def _row(ratio: Ratio, outcomes: Mapping[str, Outcome]) -> tuple[str, ...]:
    at_least = f"{ratio.at_least:g} x" if ratio.at_least is not None else "-"
    own = outcomes[ratio.own]
    peers = [p for p in (outcomes[k] for k in ratio.peers) if not p.reason]
    if own.reason or not peers:
        reason = own.reason or "; ".join(outcomes[k].reason for k in ratio.peers)
        return ratio.job, ratio.against, f"did not run: {reason}", at_least, ""
    fastest = [max(rates) for rates in zip(*(p.rates() for p in peers), strict=True)]
    values = [a / b for a, b in zip(own.rates(ratio.clock), fastest, strict=True)]
    return ratio.job, ratio.against, _spread(values, " x"), at_least, _verdict(ratio.at_least, median(values))


def _verdict(at_least: float | None, value: float) -> str:
    if at_least is None:
        return ""
    return "reached" if value >= at_least else "**missed**"


def _memory(memory: Mapping[str, Mapping[int, list[float] | str]]) -> list[str]:
    """A line a job: the peak at every size, and how much the largest slide takes over the smallest."""
    sizes = sorted({size for runs in memory.values() for size in runs})
    rows = []
    for job, runs in memory.items():
        measured = {size: values for size, values in runs.items() if not isinstance(values, str)}
        cells = [_spread(v, " MiB") if not isinstance(v := runs[size], str) else f"did not run: {v}" for size in sizes]
        growth, verdict = "", ""
        if len(measured) == len(sizes) > 1:
            grown = median(measured[sizes[-1]]) / median(measured[sizes[0]])
            growth = f"{grown:.3f}"
            within = grown <= MOST_GROWTH and max(max(v) for v in measured.values()) <= MOST_MIB
            verdict = "reached" if within else "**missed**"
        rows.append((job, *cells, growth, verdict))
    largest = f"largest over smallest (at most {MOST_GROWTH})"
    return _table(("job", *(f"{size:,} px" for size in sizes), largest, ""), rows)


def _rates(outcome: Outcome) -> list[tuple[str, ...]]:
    """The line of a contestant, and one more for its shard phase where it tells one."""
    if outcome.reason:
        return [(outcome.label, "", f"did not run: {outcome.reason}", "")]
    tiles = f"{outcome.answers[0]['tiles']:,}"
    whole = (outcome.label, tiles, _spread(outcome.rates()), _cpu(outcome, "cpu"))
    if "shards" not in outcome.answers[0]:
        return [whole]
    shards = (f"{outcome.label}: shard phase", tiles, _spread(outcome.rates("shards")), _cpu(outcome, "shards_cpu"))
    return [whole, shards]


def _cpu(outcome: Outcome, clock: str) -> str:
    return f"{median(1000 * a[clock] / a['tiles'] for a in outcome.answers):.3f}"


def _spread(values: Sequence[float], unit: str = "") -> str:
    return f"{_number(median(values))}{unit} ({_number(min(values))}-{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Any) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "/") for c in cells) + " |"
