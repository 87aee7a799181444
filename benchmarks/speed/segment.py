"""How fast wsipipe trains and stitches against the bare network and its peers, and in how much memory.

    python -m benchmarks.speed.segment --out SEGMENT.md [--peers-python PEERS/bin/python]

Runs in the environment of wsipipe; every measurement is a process of its own, and ratios compare runs in turns. Peers
(TIAToolbox, MONAI, LazySlide: peers/stitch-requirements.txt) live in an environment apart; one that does not run keeps
its row, with the reason. Each part (`--only`) adds rows to one table. Exports have scripts of their own: geojson.py and
export.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import wait_for
from benchmarks.report import machine

HERE = Path(__file__).resolve().parent
SIZES = (10_000, 40_000, 100_000)
NAIVE_SIZE, PEER_SIZE = 10_000, 4096
PEERS = ("tiatoolbox", "monai", "lazyslide")
MOST_MIB, MOST_GROWTH, LEAST_PACE = 512, 1.10, 0.90
LONGEST_S = 3600


class Failed(Exception):  # noqa: N818 - a result like any other
    """A contestant did not run; the message is the reason."""


@dataclass(frozen=True)
class Bench:
    """What the parts share: a folder for stores, the peers' Python, and how often all is done."""

    work: Path
    peers_python: Path | None
    rounds: int
    sizes: Sequence[int]

    def store(self, size_px: int, full: bool = False) -> Path:
        """The store of a synthetic slide, made when it is first asked for."""
        path = self.work / f"{'full' if full else 'sparse'}{size_px}.zarr"
        if not path.exists():
            say(f"making {path.name}")
            run_own("store", "--out", path, "--size", size_px, *(["--full"] if full else []))
        return path


Row = tuple[str, str, str, str]
"""What, measured, asked for, reached."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path, help="python of the peers' virtual environment")
    parser.add_argument("--work", type=Path, help="folder for stores, kept; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sides of the maps in px, for memory")
    parser.add_argument("--out", type=Path, help="write the page there too, as markdown")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="parts of the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wsipipe-segment-", dir=args.work) as scratch:
        work = args.work or Path(scratch)
        bench = Bench(work, args.peers_python and args.peers_python.absolute(), args.rounds, tuple(args.sizes))
        rows = [row for part in args.only for row in PARTS[part](bench)]
    text = page(rows, f"{os.getloadavg()[0]:.1f}")
    print(text)
    if args.out:
        args.out.write_text(text)


def pace(bench: Bench) -> list[Row]:
    """The network of `wsipipe segment` alone, on batches in memory, and within stitching, in turns."""
    found = run_own("pace", "--store", bench.store(1_280, full=True), "--rounds", bench.rounds)
    rows = []
    for what, suffix in (("by the clock", ""), ("by processor time", "_cpu")):
        pairs = zip(found[f"stitched{suffix}"], found[f"bare{suffix}"], strict=True)
        ratios = [stitched / bare for stitched, bare in pairs]
        rate = f"{median(found[f'stitched{suffix}']):.2f} of {median(found[f'bare{suffix}']):.2f} windows/s"
        rows.append(row(f"stitching / bare network, {what} ({rate})", ratios, LEAST_PACE, at_least=True))
    busy = found["busy"]
    return [*rows, row("share of the time in which the network was at work", busy, LEAST_PACE, at_least=True)]


def memory(bench: Bench) -> list[Row]:
    """Peak memory of stitching with one convolution, above the process after one batch, at every size."""
    above: dict[int, list[float]] = {}
    whole: dict[int, list[float]] = {}
    rows = []
    for size in bench.sizes:
        for _ in range(bench.rounds):
            peak, answer = peak_mib(own_command("memory", "--store", bench.store(size)))
            above.setdefault(size, []).append(peak - answer["before_mib"])
            whole.setdefault(size, []).append(peak)
            say(f"memory at {size} px: {above[size][-1]:.0f} MiB above {answer['before_mib']:.0f} MiB")
        rows.append(row(f"peak memory to a map of {size:,} px, MiB above the process", above[size], MOST_MIB))
    small, large = min(above), max(above)
    if small != large:
        growth = [b / a for a, b in zip(whole[small], whole[large], strict=True)]
        rows.append(row(f"peak memory of the process, {large:,} / {small:,} px", growth, MOST_GROWTH))
        growth = [b / a for a, b in zip(above[small], above[large], strict=True)]
        rows.append(row(f"the same above the process after one batch, {large:,} / {small:,} px", growth, None))
    return rows


def naive(bench: Bench) -> list[Row]:
    """The whole map in arrays: in how much memory, and how fast, against ours."""
    rows, store = [], bench.store(NAIVE_SIZE)
    peaks, paces = [], []
    for _ in range(bench.rounds):
        peak, answer = peak_mib(own_command("naive", "--store", store))
        own_peak, own = peak_mib(own_command("memory", "--store", store))
        peaks.append((peak - answer["before_mib"]) / (own_peak - own["before_mib"]))
        paces.append(own["per_s"] / (answer["windows"] / answer["seconds"]))
    rows.append(row(f"whole arrays / wsipipe, peak memory at {NAIVE_SIZE:,} px, both above the process", peaks, None))
    rows.append(row(f"wsipipe / whole arrays, windows a second at {NAIVE_SIZE:,} px, one convolution", paces, None))
    return rows


def peers(bench: Bench) -> list[Row]:
    """From a slide file to its map of classes with one convolution: wsipipe (mask and scores written) and others."""
    size = PEER_SIZE
    slide, reference = bench.work / f"tissue{size}.svs", bench.work / f"tissue{size}.npy"
    if not reference.exists():
        say(f"drawing {slide.name}")
        run_own("slide", "--out", slide, "--reference", reference, "--size", size)
    given = ("--slide", slide, "--reference", reference)
    runs: dict[str, list[dict[str, float]]] = {}
    rows: list[Row] = []
    for _ in range(bench.rounds):
        for name in ("wsipipe", *PEERS):
            command = own_command("map", *given)
            if name != "wsipipe":
                command = [bench.peers_python, HERE / "peers" / "stitch_peers.py", name, *given]
            try:
                if bench.peers_python is None and name != "wsipipe":
                    raise Failed("no --peers-python")
                runs.setdefault(name, []).append(peak_mib(command)[1])
                say(f"{name}: {runs[name][-1]}")
            except Failed as failure:
                rows.append((f"{name}, slide of {size:,} px to its map", f"did not run: {failure}", "", ""))
    for name, found in runs.items():
        rows.append(row(f"{name}: slide of {size:,} px to its map, s", [r["seconds"] for r in found], None))
        above = [r["peak_mib"] - r["before_mib"] for r in found]
        rows.append(row(f"{name}: peak memory, MiB above the process", above, None))
        same = median(r["same"] for r in found)
        rows.append((f"{name}: pixels of the class that the slide convolved in one piece has", f"{same:.5f}", "", ""))
    own = runs["wsipipe"]
    for name in PEERS:
        if len(runs.get(name, ())) == len(own):
            pairs = list(zip(runs[name], own, strict=True))
            faster = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
            rows.append(row(f"{name} / wsipipe, time", faster, 1, at_least=True))
            less = [(a["peak_mib"] - a["before_mib"]) / (b["peak_mib"] - b["before_mib"]) for a, b in pairs]
            rows.append(row(f"{name} / wsipipe, peak memory above the process", less, 1, at_least=True))
    return rows


def training(bench: Bench) -> list[Row]:
    """Training steps on batches from the store, with all that varies them, against one batch held in memory."""
    found = run_own("train", "--store", bench.store(1_280, full=True), "--rounds", bench.rounds)
    ratios = [drawn / held for drawn, held in zip(found["drawn"], found["held"], strict=True)]
    rate = f"{median(found['drawn']):.2f} of {median(found['held']):.2f} steps/s"
    return [
        row(f"training step from the store / on a batch held in memory ({rate})", ratios, LEAST_PACE, at_least=True)
    ]


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "pace": pace,
    "training": training,
    "memory": memory,
    "naive": naive,
    "peers": peers,
}


def row(what: str, values: Sequence[float], bound: float | None, at_least: bool = False) -> Row:
    """Median and range of what was measured against what was asked for."""
    digits = 0 if median(values) >= 20 else 2
    said = f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
    if bound is None:
        return what, said, "", ""
    reached = median(values) >= bound if at_least else median(values) <= bound
    return what, said, f"{'>=' if at_least else '<='} {bound}", "yes" if reached else "**no**"


def page(rows: Sequence[Row], load: str) -> str:
    """The table as markdown."""
    head = ["# Training and stitching", "", f"- machine: {machine()}", f"- load average at the end: {load}", ""]
    table = ["| what | median (range) | asked for | reached |", "|---|---|---|---|"]
    return "\n".join([*head, *table, *(f"| {' | '.join(r)} |" for r in rows)]) + "\n"


def own_command(*arguments: object) -> list[object]:
    """A process of wsipipe."""
    return [sys.executable, HERE / "peers" / "stitch_own.py", *arguments]


def run_own(*arguments: object) -> dict[str, Any]:
    """The answer of a process of wsipipe."""
    return peak_mib(own_command(*arguments))[1]


def peak_mib(command: Sequence[object]) -> tuple[float, dict[str, Any]]:
    """The most MiB that a command held, and its answer; Failed with the last line that it said."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_WAIT_POLICY": "PASSIVE"}
        try:
            process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, env=environment)
        except OSError as error:
            raise Failed(f"its python does not start: {error.strerror}") from None
        peak = wait_for(process)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().strip().splitlines())
        if process.returncode:
            raise Failed((said[1] or [f"exit code {process.returncode}"])[-1])
    return peak, json.loads(said[0][-1])


def say(text: str) -> None:
    """To stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
