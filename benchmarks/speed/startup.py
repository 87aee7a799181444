"""How long `wsipipe --help` takes, in starts of the bare interpreter.

python -m benchmarks.speed.startup --runs 20
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BARE = (sys.executable, "-c", "pass")
WSIPIPE = (sys.executable, "-c", "from wsipipe.cli import main; main()")
PAGES = (("--help",), ("tile", "--help"), ("pseudolabel", "--help"), ("segment", "--help"))


def seconds(command: tuple[str, ...]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def medians(commands: list[tuple[str, ...]], runs: int) -> list[float]:
    """Median seconds per command; the commands take turns, so that they share the machine's ups and downs."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(runs):
        for command, own in zip(commands, times, strict=True):
            own.append(seconds(command))
    return [statistics.median(own) for own in times]


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each command")
    runs = parser.parse_args().runs
    commands = [BARE, *((*WSIPIPE, *arguments) for arguments in PAGES)]
    medians(commands, 1)  # fills the caches
    bare, *own = medians(commands, runs)
    print(f"bare interpreter: {bare * 1e3:.0f} ms, median of {runs}")
    for arguments, time_s in zip(PAGES, own, strict=True):
        print(f"wsipipe {' '.join(arguments)}: {time_s * 1e3:.0f} ms, {time_s / bare:.1f} starts of the interpreter")


if __name__ == "__main__":
    main()
