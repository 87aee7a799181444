"""Options of the command line, made from the fields of the configuration."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wsipipe.config.options import SECTIONS, RunConfig
from wsipipe.config.yaml import scalar
from wsipipe.errors import ConfigError
from wsipipe.pipeline import Settings, read_settings
from wsipipe.pseudolabel.registry import ALL, NONE, names, refinements

F = typing.TypeVar("F", bound=Callable[..., Any])

_SHORT = {
    "formats": "format",
    "dicom_codes": "dicom-code",
    "patch_px": "patch",
    "stride_px": "stride",
    "window_px": "window",
    "border_px": "border",
    "stitch_memory_mb": "stitch-memory",
    "score_stride_px": "score-stride",
}
STORES = click.argument("store", nargs=-1, type=click.Path(path_type=Path))
"""The argument of commands that work on stores."""


def options(section: str, *skip: str) -> Callable[[F], F]:
    """Click options for every field of a section's dataclass; what is not given stays out of the call."""
    config = SECTIONS[section]
    hints = typing.get_type_hints(config)

    def decorate(function: F) -> F:
        for field in reversed(dataclasses.fields(config)):
            if field.name not in skip:
                function = _option(section, field, hints[field.name])(function)
        return function

    return decorate


def _option(section: str, field: dataclasses.Field[Any], kind: Any) -> Callable[[F], F]:
    flag = _SHORT.get(field.name, field.name.replace("_um2", "").replace("_", "-"))
    help = field.metadata["help"]
    if field.default not in ("", (), 0, 0.0) and kind is not bool:
        help += f"  [default: {field.default}]"
    name = f"{section}__{field.name}"
    if kind is bool:
        help += f"  [default: {'on' if field.default else 'off'}]"
        return click.option(f"--{flag}/--no-{flag}", name, default=None, help=help)
    if kind in (int, float):
        return click.option(f"--{flag}", name, type=kind, default=None, help=help)
    if section == "pseudolabel" and field.name == "method":
        return click.option(f"--{flag}", name, metavar="|".join((*names(), ALL)), default=None, help=help)
    if section == "pseudolabel" and field.name == "refine":
        return click.option(f"--{flag}", name, type=click.Choice((*refinements(), NONE)), default=None, help=help)
    if typing.get_origin(kind) is tuple:
        return click.option(f"--{flag}", name, multiple=True, default=None, help=help + " (repeat the option)")
    return click.option(f"--{flag}", name, default=None, help=help)


def common(function: F) -> F:
    """Options that every command has."""
    function = click.option("--overwrite", is_flag=True, help="replace what was made from other inputs")(function)
    function = click.option("--quiet", "-q", is_flag=True, help="only warnings and errors on stderr")(function)
    function = click.option(
        "--config", type=click.Path(path_type=Path), default=None, help="YAML file instead of ./pipeline.yaml"
    )(function)
    return options("run", "slides", "dask")(function)


def settings_of(call: dict[str, Any], **more: dict[str, Any]) -> Settings:
    """Settings from the parameters of a command call, the YAML file and `more` values."""
    flags: dict[str, dict[str, Any]] = {s: {} for s in SECTIONS}
    for key, value in call.items():
        section, _, name = key.partition("__")
        if name and value is not None and value != ():
            flags[section][name] = value
    for section, values in more.items():
        flags[section].update(values)
    return read_settings(call.get("config"), flags)


def dask(function: F) -> F:
    """The option of commands that can run on a dask cluster."""
    return options("run", *(f.name for f in dataclasses.fields(RunConfig) if f.name != "dask"))(function)


def assigned(assignments: tuple[str, ...], methods: list[str]) -> dict[str, dict[str, Any]]:
    """[NAME.]KEY=VALUE texts as values by name (default: the one method), each read as YAML would."""
    values: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        name, dot, last = key.strip().rpartition(".")
        if not equals:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, such as --set prevalence=0.2")
        if not dot and len(methods) > 1:
            raise ConfigError(f"--set {text}: of which method? Say it as --set {methods[0]}.{text}")
        if dot and name not in (*names(), *refinements()):
            raise ConfigError(f"--set {text}: {name!r} is neither a method nor a refinement")
        values.setdefault(name or methods[0], {})[last] = scalar(value)
    return values
