"""How fast wsipipe tiles slides and reads patches, and in how much memory, against its peers and the limits.

    python -m venv PEERS && PEERS/bin/pip install -r benchmarks/speed/peers-requirements.txt
    python -m benchmarks.speed.tiling --peers-python PEERS/bin/python --slides SLIDES --make-slides --out TILING.md

Runs in the environment of wsipipe. Every measurement is a process of its own; contestants take turns, round by round,
and a ratio compares runs of the same round. A peer that does not run keeps its rows, with the reason.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import wait_for
from benchmarks.report import Outcome, Results, machine, markdown
from benchmarks.speed.contestants import GROUPS, MPP, TIMED_SIZE, Contestant, Group, Place

HERE = Path(__file__).resolve().parent
SIZES = (10_000, 40_000, 100_000)
MEMORY_ROUNDS = 3
LONGEST_S = 3600
OWN_PACKAGES = ("wsipipe", "numpy", "zarr", "imagecodecs", "pillow", "tifffile", "google-crc32c")
COMMAND = (
    "python -m benchmarks.speed.tiling --peers-python PEERS/bin/python --slides SLIDES --make-slides --rounds {rounds} "
    "--out docs/results/tiling.md"
)
NOTES = (
    "Every contestant is a process of its own; imports, opening the slide, starting worker processes and checking the "
    "output are outside of its time. The slide is in the page cache, outputs lie on one disk, and nobody syncs: "
    "`os.fsync` does nothing in the process of wsipipe.",
    "All do equal work: the chunks of 256 px that the store of wsipipe holds (tissue and one patch around it). "
    "dzsave converts the whole slide, and its rate counts all of these tiles, of which the blank ones are cheap.",
    "Shard phase: from the start of the first shard of level 0 to the end of the last, in 2 threads. Whole command: "
    "tissue, plan, all levels, masks, tables, and the ledger.",
    "zarr-python reads the same patches from arrays [patch, y, x, 3] of one chunk a patch, 256 patches a shard, with "
    "crc32c; a loop over windows of the store itself is a candidate too. The fastest of them in each round counts.",
    "Outputs were checked in every run: the number of tiles, and one tile against the same tile of wsipipe: equal, or "
    "with a second lossy JPEG generation or another rounding within 3 grey levels in the mean.",
    "Peak memory: the whole command in a fresh process, at native resolution and at half of it; the larger of the "
    "process's own high-water mark and the sum over its process tree, sampled every 20 ms.",
    "The slides are synthetic (benchmarks/speed/peers/make_slide.py): 256 px JPEG tiles, 4:2:0, 40 % tissue.",
)


class Failed(Exception):  # noqa: N818 - a result like any other
    """A contestant did not run, or not rightly; the message is the reason."""


def main() -> None:
    """Command line."""
    args = _arguments()
    results = Results()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="wsipipe-tiling-", dir=args.work) as work:
        place = Place(args.peers_python.absolute(), args.slides.resolve(), Path(work))
        if args.make_slides:
            make_slides(place)
        _prepare(place, args.only)
        for name, group in GROUPS.items():
            if name in args.only:
                race(place, group(place), args.rounds, results)
        if "memory" in args.only:
            for round_ in range(min(args.rounds, MEMORY_ROUNDS)):
                measure_memory(place, results, round_)
    facts = {
        "machine": machine(),
        "load average at the start": f"{load:.1f}",
        "wsipipe": _versions(Path(sys.executable), OWN_PACKAGES),
        "peers": _versions(args.peers_python, _peer_packages()),
        "command": f"`{COMMAND.format(rounds=args.rounds)}`",
    }
    text = markdown(results, facts, NOTES)
    print(text)
    if args.out:
        args.out.write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path, required=True, help="python of the peers' virtual environment")
    parser.add_argument("--slides", type=Path, required=True, help="folder of the slides s10k.svs, s40k.svs, s100k.svs")
    parser.add_argument("--make-slides", action="store_true", help="draw the slides that are missing")
    parser.add_argument("--work", type=Path, help="folder for outputs, 10 GB free; default: the system's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the page there too, as markdown")
    parts = (*GROUPS, "memory")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="part of the table")
    return parser.parse_args()


def make_slides(place: Place) -> None:
    """Draw the slides that are not there yet."""
    place.slides.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        if not place.slide(size).exists():
            partial = place.slide(size).with_suffix(".partial.svs")
            _say(f"drawing {place.slide(size).name}")
            command = [place.peers_python, HERE / "peers" / "make_slide.py", partial, "--size", str(size)]
            subprocess.run(command, check=True)
            partial.rename(place.slide(size))


def _prepare(place: Place, only: Sequence[str]) -> None:
    """Lists of equal work, a store to read from, and a slide in the page cache."""
    with place.slide().open("rb") as f:
        while f.read(1 << 24):
            pass
    for name, mpp in MPP.items():
        arguments = ("--slide", place.slide(), "--mpp", str(mpp))
        run(place, Contestant(name, "", "own", "prepare", arguments), place.given(name))
    if "reads" in only:
        given = place.given("native")
        arguments = ("--windows", given / "aligned.npz", "--store", given / "store.zarr")
        try:
            run(place, Contestant("pack", "", "reads", "pack", arguments), place.given("arrays"))
        except Failed as failure:
            _say(f"no arrays of patches for zarr-python: {failure}")


def race(place: Place, group: Group, rounds: int, results: Results) -> None:
    """Run the contestants of a group in turns; one that fails is left out from then on."""
    results.ratios += group.ratios
    results.outcomes |= {c.key: Outcome(c.label) for c in group.contestants}
    for round_ in range(rounds):
        for contestant in group.contestants:
            outcome = results.outcomes[contestant.key]
            if outcome.reason:
                continue
            out = place.work / "out" / contestant.key
            try:
                answer = run(place, contestant, out)
                _check(contestant, answer, place, results)
                outcome.answers.append(answer)
                _say(f"round {round_ + 1}: {contestant.label}: {answer['tiles'] / answer['seconds']:,.0f} tiles/s")
            except Failed as failure:
                outcome.reason = str(failure)
                _say(f"round {round_ + 1}: {contestant.label}: {failure}")
            _keep_probe_only(out)


def run(place: Place, contestant: Contestant, out: Path) -> dict[str, Any]:
    """Run one contestant once; its answer, or Failed with the last line that it said."""
    python = sys.executable if contestant.script == "own" else place.peers_python
    script = HERE / "peers" / f"{contestant.script}.py"
    command = [python, script, contestant.name, *contestant.arguments, "--out", out]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=_environment(), timeout=LONGEST_S, check=False
        )
    except OSError as error:
        raise Failed(f"its python does not start: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"not done in {LONGEST_S} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failed(said[-1].replace(str(place.work), "WORK"))
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _environment() -> dict[str, str]:
    """Of every process: this checkout of wsipipe, and 2 threads for whoever counts them by itself."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "VIPS_CONCURRENCY": "2", "OMP_NUM_THREADS": "1"}


def _check(contestant: Contestant, answer: dict[str, Any], place: Place, results: Results) -> None:
    """Failed if the output is not what it has to be."""
    import numpy as np

    others = results.outcomes[contestant.like].answers if contestant.like else []
    if not others:
        return
    wanted = math.ceil(TIMED_SIZE / 256) ** 2 if contestant.whole_slide else others[-1]["tiles"]
    if answer["tiles"] != wanted:
        raise Failed(f"wrong output: {answer['tiles']} tiles, not {wanted}")
    theirs, ours = (
        np.load(place.work / "out" / k / "probe.npy").astype(int) for k in (contestant.key, contestant.like)
    )
    difference = float(np.abs(theirs - ours).mean())
    if difference > contestant.differs:
        raise Failed(f"wrong output: one tile is {difference:.2f} grey levels off in the mean")


def _keep_probe_only(out: Path) -> None:
    """Remove an output; unwritten pages of it do not then disturb who comes next."""
    for path in out.iterdir() if out.exists() else ():
        if path.name != "probe.npy":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def measure_memory(place: Place, results: Results, round_: int) -> None:
    """Peak memory of the command at every size and resolution, once."""
    for name, mpp in MPP.items():
        runs = results.memory.setdefault(f"{mpp} um/px ({name})", {})
        for size in SIZES:
            slide = place.slide(size)
            if isinstance(so_far := runs.setdefault(size, []), str):
                continue
            try:
                if not slide.exists():
                    raise Failed(f"no {slide.name}; see --make-slides")
                so_far.append(peak_mib(place, slide, mpp))
                _say(f"round {round_ + 1}: memory at {mpp} um/px, {size:,} px: {so_far[-1]:.0f} MiB")
            except Failed as failure:
                runs[size] = str(failure)


def peak_mib(place: Place, slide: Path, mpp: float) -> float:
    """The most memory that `wsipipe tile` of one slide takes, its child processes included."""
    folder = place.work / "memory"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = "from wsipipe.cli import main; main()"
    command = [sys.executable, "-c", start, "tile", str(slide), "--mpp", str(mpp), "--workers", "2", "--quiet"]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=_environment())
        peak = wait_for(process)
        if process.returncode:
            log.seek(0)
            said = log.read().strip().splitlines() or [f"exit code {process.returncode}"]
            raise Failed(said[-1].replace(str(place.work), "WORK"))
    shutil.rmtree(folder)
    return peak


def _versions(python: Path, packages: Sequence[str]) -> str:
    """Python and package versions of an environment."""
    code = (
        "import sys, importlib.metadata as m\n"
        "print('Python', sys.version.split()[0], end='')\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(',', name, m.version(name), end='')\n"
        "    except m.PackageNotFoundError: print(',', name, 'not installed', end='')\n"
    )
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"python does not start: {error.strerror}"
    return done.stdout.replace(" ,", ",")


def _peer_packages() -> list[str]:
    """Names in the peers' requirements."""
    lines = (HERE / "peers-requirements.txt").read_text().splitlines()
    names = [line.split("==")[0].split("[")[0] for line in lines if "==" in line]
    return [*names, "pyvips-binary"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
