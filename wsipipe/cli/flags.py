"""Names of flags: that of a field of the configuration, and what an old flag is called now."""

from __future__ import annotations

from collections.abc import Collection

from wsipipe.config.renamed import RENAMED

_SHORT = {
    "formats": "format",
    "dicom_codes": "dicom-code",
    "patch_px": "patch",
    "stride_px": "stride",
    "window_px": "window",
    "border_px": "border",
    "memory_mb": "stitch-memory",
    "score_stride_px": "score-stride",
}


def flag_of(name: str) -> str:
    """The flag of a field: `patch_px` is --patch."""
    return "--" + _SHORT.get(name, name.replace("_um2", "").replace("_", "-"))


def new_flag(old: str, sections: Collection[str]) -> str | None:
    """What a renamed flag of a command, whose options come from `sections`, is called now; None if it is not one."""
    no = "no-" if old.startswith("--no-") else ""
    for key, new in RENAMED.items():
        section, _, name = key.partition(".")
        if section in sections and flag_of(name) == old.replace("--no-", "--"):
            return flag_of(new.rpartition(".")[2]).replace("--", f"--{no}")
    return None
