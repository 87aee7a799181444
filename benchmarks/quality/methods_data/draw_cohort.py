"""Draw the procedural cohort: OUT/slides, OUT/labels.csv and OUT/truth.

python benchmarks/quality/methods_data/draw_cohort.py OUT --train 10 --test 4 --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsipipe.demo.cohort import CohortConfig, make_cohort


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=10)
    parser.add_argument("--test", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_cohort(args.out, CohortConfig(train_slides=args.train, test_slides=args.test, seed=args.seed))


if __name__ == "__main__":
    main()
