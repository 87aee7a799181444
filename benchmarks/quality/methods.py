"""How well masks learnt from weak labels do, against trivial answers and against training on the pixels themselves.

    python -m benchmarks.quality.methods --data DATA --sets glas --budget quick --out METHODS.md

Every step is a command of wsipipe in a process of its own. The track is L0: no pixel label is used anywhere before the
judgement, which is the last thing that is done; the weak methods run in a folder without truth, and a step whose
folder or command line leads to the truth is refused. What was done is not done again: run the same command to go on.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.metadata
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.quality.methods_bench.dataset import DataSet, Wrong, read_dataset
from benchmarks.quality.methods_bench.guard import Guard, TruthSeen
from benchmarks.quality.methods_bench.page import section
from benchmarks.quality.methods_bench.plan import Place, Plan
from benchmarks.quality.methods_bench.steps import Records, Step, run_all
from benchmarks.report import machine

HERE = Path(__file__).resolve().parent
SETS = HERE / "methods_data"
PACKAGES = ("wsipipe", "torch", "timm", "segmentation-models-pytorch", "numpy")
NOTES = (
    "Track L0: no pixel label takes part before the judgement; the last line of a table alone is trained on pixels.",
    "patients: `train` are those whose weak labels were fitted (a class that the label denies is never painted there), "
    "`test` those that nothing was fitted on, whose slide label is not used either.",
    "Dice, IoU, precision and recall: of the named classes (their mean where there are several), over one confusion of "
    "all pixels of all folds; pixels that an answer leaves open count as none. mIoU and accuracy: with class 0.",
    "With several seeds: the mean, with the lowest and the highest in round brackets (of slide AUC, over folds too). "
    "With one fold and one seed of 8 patients or more: the 95 % interval of Dice, by patient, in square brackets.",
    "weak / supervised: Dice of the row over Dice of the last line, seed by seed. The network of the last line starts "
    "from the encoder that the last method was fitted with, as that method's own segmenter does: only masks differ. "
    "No ratio is given where the last line is no better than calling all tissue the class.",
    "min, MiB: wall time of the steps that lead to the row, of one fold and seed, tiling aside; the highest peak of "
    "memory of a process and its children among them.",
    "Label copied to all tissue: all tissue of the slides that hold the class; all tissue: of every slide.",
)


def main() -> None:
    """Command line."""
    args = _arguments()
    deadline = time.monotonic() + args.seconds if args.seconds else float("inf")
    page: list[str] = []
    left = 0
    for name in args.sets:
        path = Path(name) if name.endswith(".yaml") else SETS / f"{name}.yaml"
        data = read_dataset(path, args.data.resolve(), args.budget, args.methods, args.folds, args.seeds)
        plans = [_plan(data, i, args) for i in range(len(data.folds))]
        for plan in plans:
            left += work_off(plan, args.only, deadline)
        page += section(data, plans)
    text = "\n".join([*_head(args), *page, "", "## Notes", "", *(f"- {n}" for n in NOTES), ""])
    print(text, end="")
    if args.out:
        args.out.write_text(text)
    if left:
        _say(f"{left} steps are left; run the same command again to go on")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(p.stem for p in SETS.glob("*.yaml"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data: glas/, ebhi/")
    parser.add_argument("--sets", nargs="+", default=["glas"], help=f"{', '.join(known)}, or a YAML file")
    parser.add_argument("--budget", default="quick", help="as the data set defines them: quick, hour, full, ..")
    parser.add_argument("--methods", nargs="+", default=(), help="default: all that the data set names")
    parser.add_argument("--folds", nargs="+", type=int, default=(), help="numbers; default: what the budget says")
    parser.add_argument("--seeds", type=int, default=0, help="how many; default: what the budget says")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--work", type=Path, default=Path("methods-work"), help="folder for everything that is made")
    parser.add_argument(
        "--only", nargs="+", default=("*",), metavar="PATTERN", help="steps to run, e.g. 'glas/fold1/cam*'"
    )
    parser.add_argument("--seconds", type=float, default=0, help="start no step later than this; 0: no limit")
    parser.add_argument("--out", type=Path, help="write the page there too, as markdown")
    return parser.parse_args()


def _plan(data: DataSet, index: int, args: argparse.Namespace) -> Plan:
    fold = data.folds[index]
    top = args.work.resolve() / f"{data.name}-{args.budget}" / f"fold{fold.number}"
    return Plan(data, fold, Place(top), args.device)


def work_off(plan: Plan, only: Sequence[str], deadline: float) -> int:
    """Run the steps of a fold that are wanted and not done, judgement last; the number of those that are left."""
    records = Records(plan.place.records)

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in only)

    def go(steps: Sequence[Step], before: Callable[[Step], None]) -> int:
        return len(run_all(steps, records, wanted, deadline - time.monotonic(), before, _say))

    if left := go(plan.make(), lambda step: None):
        return left
    plan.lay_out()
    guard = Guard(plan.data.truth_files(plan.place.made))

    def keep_away(step: Step) -> None:
        if step.track == "weak":
            guard.check(step.argv, step.cwd)

    left = go([*plan.weak()], keep_away)
    left += go([*plan.supervised()], keep_away)
    return left + go([*plan.judge()], keep_away)


def _head(args: argparse.Namespace) -> list[str]:
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    command = f"python -m benchmarks.quality.methods --data DATA --sets {' '.join(args.sets)} --budget {args.budget}"
    for flag in ("methods", "folds"):
        command += f" --{flag} {' '.join(map(str, given))}" if (given := getattr(args, flag)) else ""
    command += f" --seeds {args.seeds}" if args.seeds else ""
    facts = {
        "machine": machine() + _gpu(args.device),
        "versions": f"Python {sys.version.split()[0]}, {versions}",
        "command": f"`{command}`",
    }
    title = "# Masks from weak labels, against trivial answers and full supervision"
    return [title, "", f"{today}, budget `{args.budget}`.", "", *(f"- {k}: {v}" for k, v in facts.items())]


def _gpu(device: str) -> str:
    """The GPU that is used, in words."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return ", no GPU used"
    return f", {torch.cuda.get_device_name()}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except TruthSeen as error:
        raise Wrong(f"refused: {error}") from None
