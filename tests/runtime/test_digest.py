"""The digest: different for different values, and the same everywhere for equal ones."""

from __future__ import annotations

import os
import subprocess
import sys

from wsipipe.runtime.digest import digest


def test_digest_tells_values_apart_and_forgets_only_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": (2.5, None)}) == digest({"b": [2.5, None], "a": 1})
    assert len({digest(1), digest("1"), digest(1, 2), digest([1, 2]), digest(), digest({"a": 1})}) == 6
    assert len(digest("x")) == 32


def test_digest_is_the_same_in_every_process_and_version() -> None:
    assert digest("tile", {"mpp": 0.5}) == "91e18aa105ea8de8cf71787f44620630"
    code = "from wsipipe.runtime.digest import digest; print(digest('tile', {'mpp': 0.5}))"
    for seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert run.stdout.strip() == digest("tile", {"mpp": 0.5})
