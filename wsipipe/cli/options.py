"""Options of the command line, made from the fields of the configuration."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wsipipe.cli.flags import flag_of
from wsipipe.cli.help import LAST, Option
from wsipipe.config.options import SECTIONS
from wsipipe.config.yaml import scalar
from wsipipe.errors import ConfigError
from wsipipe.pipeline import Settings, read_settings
from wsipipe.pseudolabel.registry import ALL, NONE, method_names, refinement_names

F = typing.TypeVar("F", bound=Callable[..., Any])

_UNITS = {"_px": "PX", "_um": "UM", "_um2": "UM2", "mpp": "UM/PX", "mpp_override": "UM/PX", "_mb": "MB"}

STORES = click.argument("store", nargs=-1, type=click.Path(path_type=Path))
"""The argument of commands that work on stores."""

OVERWRITE = click.option(
    "--overwrite", is_flag=True, help="replace results that were made from other inputs", cls=Option, group=LAST
)
"""The option of commands that refuse to replace results made from other inputs."""


def options(section: str, *only: str, skip: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Options for the fields of a section (all, or `only` some); what the caller leaves out stays out of the call."""
    config = SECTIONS[section]
    hints = typing.get_type_hints(config)

    def decorate(function: F) -> F:
        for field in reversed(dataclasses.fields(config)):
            if field.name in (only or hints) and field.name not in skip:
                function = _option(section, field, hints[field.name])(function)
        return function

    return decorate


def _option(section: str, field: dataclasses.Field[Any], kind: Any) -> Callable[[F], F]:
    flag = flag_of(field.name)
    more: dict[str, Any] = {
        "default": None,
        "help": _help(field, kind),
        "cls": Option,
        "group": field.metadata["group"],
    }
    name = f"{section}__{field.name}"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, **more)
    more["metavar"] = field.metadata["metavar"] or _metavar(field.name, kind)
    if (section, field.name) == ("pseudolabel", "method"):
        more["metavar"] = "|".join((*method_names(), ALL))
    if (section, field.name) == ("pseudolabel", "refine"):
        more["metavar"] = "|".join((*refinement_names(), NONE))
    if kind in (int, float):
        return click.option(flag, name, type=kind, **more)
    return click.option(flag, name, multiple=typing.get_origin(kind) is tuple, **more)


def _metavar(name: str, kind: Any) -> str:
    """What stands for a value: its unit, or what kind of value it is."""
    unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")
    return unit or ("N" if kind is int else "X" if kind is float else "TEXT")


def _help(field: dataclasses.Field[Any], kind: Any) -> str:
    """The sentence of an option and its default, which the sentence names itself where the value says nothing."""
    text, _, named = field.metadata["help"].partition("; default: ")
    heading = f"{field.metadata['group']}: "
    if text.lower().startswith(heading.lower()):  # pipeline.yaml has no headings, and says it in the sentence
        text = text[len(heading) :]
    repeat = "may be repeated" if typing.get_origin(kind) is tuple else ""
    default = named or _shown(field.default)
    notes = "; ".join(note for note in (repeat, default and f"default: {default}") if note)
    return f"{text}  [{notes}]" if notes else text


def _shown(default: Any) -> str:
    """A default as a person reads it; empty if there is none."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ", ".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def common(*names: str) -> Callable[[F], F]:
    """What every command that works on slides or stores takes; `names`: the options of section run that it uses."""

    def decorate(function: F) -> F:
        function = click.option(
            "--quiet", "-q", is_flag=True, help="only warnings and errors on stderr", cls=Option, group=LAST
        )(function)
        function = click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="options in YAML  [default: ./pipeline.yaml, if there]",
            cls=Option,
            group=LAST,
            metavar="FILE",
        )(function)
        return options("run", "stores", "runs", "max_failed", *names)(function)

    return decorate


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


def assigned(assignments: tuple[str, ...], methods: list[str]) -> dict[str, dict[str, Any]]:
    """[NAME.]KEY=VALUE texts as values by name (default: the one method), each read as YAML would."""
    values: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        name, dot, last = key.strip().rpartition(".")
        if not equals:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, such as --set prevalence=0.2")
        if not dot and len(methods) > 1:
            raise ConfigError(f"--set {text}: several methods run; name one, as in --set {methods[0]}.{text}")
        if dot and name not in (*method_names(), *refinement_names()):
            raise ConfigError(f"--set {text}: {name!r} is neither a method nor a refinement")
        values.setdefault(name or methods[0], {})[last] = scalar(value)
    return values
