"""A pipeline.yaml with every option at its default and what it means, generated from the options."""

from __future__ import annotations

import dataclasses
from typing import Any

from wsipipe.config.options import SECTIONS
from wsipipe.config.yaml import written
from wsipipe.pseudolabel.registry import load_method, load_refinement, method_names, refinement_names

HEAD = """\
# Every option of wsipipe at its default. A flag overrides this file; an option that is left out keeps its default.
# Every command reads ./pipeline.yaml. To write this file again: wsipipe config > pipeline.yaml
"""


def template() -> str:
    """The text of the file; parameters of methods and refinements lie below `pseudolabel`, under their names."""
    parts = [HEAD]
    for section, config in SECTIONS.items():
        lines = [f"{section}: # {_sentence(config)}", *_options(config, "  ")]
        if section == "pseudolabel":
            named = {
                **{n: load_method(n) for n in method_names()},
                **{n: load_refinement(n) for n in refinement_names()},
            }
            for name, module in named.items():
                lines += [f"  {name}: # {_sentence(module)}", *_options(module.Params, "    ")]  # type: ignore[union-attr]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _options(config: type[Any], indent: str) -> list[str]:
    """A line per field: its default and its help."""
    lines = []
    for field in dataclasses.fields(config):
        lines.append(f"{indent}{field.name}: {written(field.default)} # {field.metadata['help']}")
    return lines


def _sentence(thing: Any) -> str:
    """The first sentence of a docstring."""
    return str(thing.__doc__).strip().splitlines()[0].split(": ")[0].rstrip(".")
