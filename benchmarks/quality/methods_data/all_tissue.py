"""Write masks that call every pixel of images tissue: OUT/<name>.png.

    python benchmarks/quality/methods_data/all_tissue.py IMAGES OUT

For images cut from the inside of tissue, in which a tissue finder takes bright lumens for glass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imagecodecs
import numpy as np


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(args.images.glob("*.png")):
        height, width = imagecodecs.imread(path).shape[:2]
        mask = np.ones((height, width), np.uint8)
        (args.out / path.name).write_bytes(imagecodecs.png_encode(mask))


if __name__ == "__main__":
    main()
