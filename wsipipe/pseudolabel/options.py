"""The options of the stage: its own, the parameters of methods and refinements, and how encoders are pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wsipipe.config.options import PretrainConfig, PseudolabelConfig
from wsipipe.config.yaml import build
from wsipipe.errors import ConfigError
from wsipipe.pseudolabel.method import Method
from wsipipe.pseudolabel.refinement import RefinementStep
from wsipipe.pseudolabel.registry import load_refinement, method_names, parse_methods, refinement_names

Sections = Mapping[str, Mapping[str, Any]]
"""Parameters by the name of their method or refinement."""


@dataclass(frozen=True)
class PseudolabelOptions:
    """What `pseudolabel` does.

    config: the options of the command. sections: parameters of methods and refinements; defaults fill the rest.
    pretrain: how the encoder is pretrained, if `config` asks for it and it has no weights.
    """

    config: PseudolabelConfig = field(default_factory=PseudolabelConfig)
    sections: Sections = field(default_factory=dict)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def per_method(self) -> list[PseudolabelOptions]:
        """The options of each method that `config.method` names; ConfigError if names or sections are wrong."""
        if unknown := set(self.sections) - {*method_names(), *refinement_names()}:
            raise ConfigError(f"pseudolabel: parameters of {', '.join(sorted(unknown))}, no method or refinement")
        methods = parse_methods(self.config.method)
        if len(methods) > 1 and self.config.name:
            raise ConfigError(
                f"pseudolabel.name: {self.config.name!r} for {len(methods)} methods; each is named after itself"
            )
        return [replace(self, config=replace(self.config, method=method)) for method in methods]


def resolve_params(method: Method, name: str, sections: Sections) -> Any:
    """The parameters of the method `name`; ConfigError names the dotted path of a wrong one."""
    return build(method.Params, sections.get(name, {}), f"pseudolabel.{name}")


def resolve_refinement(config: PseudolabelConfig, method: Method, sections: Sections) -> RefinementStep | None:
    """The refinement that `config` names, or by default that of the method; None for none."""
    name = config.refine or method.REFINEMENT
    module = load_refinement(name)
    if module is None:
        return None
    params = build(module.Params, sections.get(name, {}), f"pseudolabel.{name}")
    return RefinementStep(name, module, params, config.refine_stride_px)
