"""Strict reader of pipeline.yaml: unknown keys and wrong types are errors with the dotted path."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from wsipipe.config.options import SECTIONS
from wsipipe.config.renamed import check_key
from wsipipe.errors import ConfigError

T = TypeVar("T")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML; aliases and repeated keys are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("YAML aliases (*name) are not allowed; repeat the value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{key}: appears twice in the section at line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a pipeline.yaml; {} for an empty file. Raises ConfigError for unknown sections."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected sections such as 'tile:', found {type(data).__name__}")
    for name, section in data.items():
        if name not in SECTIONS:
            raise ConfigError(f"{path}: {_unknown(str(name), SECTIONS)}")
        if section is not None and not isinstance(section, dict):
            raise ConfigError(f"{path}: {name}: expected keys below it, found {section!r}")
    return {name: section or {} for name, section in data.items()}


def scalar(text: str) -> Any:
    """A value from the command line, parsed as in pipeline.yaml."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def written(value: Any) -> str:
    """A value as one line of pipeline.yaml; `scalar` parses it."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def build(cls: type[T], values: Mapping[str, Any], where: str, nested: tuple[str, ...] = ()) -> T:
    """A config dataclass from a mapping. Raises ConfigError with the dotted path for unknown keys and wrong types.

    `nested` keys (sections of methods and refinements) are skipped; their modules build them.
    """
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    clean: dict[str, Any] = {}
    for key, value in values.items():
        if key in nested:
            continue
        if key not in fields:
            check_key(f"{where}.{key}")
            raise ConfigError(f"{where}.{_unknown(str(key), (*fields, *nested))}")
        clean[key] = _typed(value, hints[key], f"{where}.{key}")
    return cls(**clean)


def _unknown(key: str, known: Any) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return f"{key}: unknown key; {hint}"


def _typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`: bool, int, float, str or tuple[str, ...].

    An int is accepted for a float or a str, and text such as 1e-3 for a float.
    """
    origin = typing.get_origin(kind)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list such as [a, b], found {value!r}")
        return tuple(_typed(v, typing.get_args(kind)[0], where) for v in value)
    if isinstance(kind, types.UnionType):
        raise TypeError(f"{where}: union types are not supported in options")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 parses 1e-3, without a point, as text
        with contextlib.suppress(ValueError):
            return float(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value
