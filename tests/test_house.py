"""The measures of the house: short files, short functions, no import circle, a floor for every module."""

from __future__ import annotations

import ast
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("wsipipe", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
PACKAGE = [p for p in FILES if p.is_relative_to(ROOT / "wsipipe")]

LINES_PER_FILE = 400
LINES_PER_FUNCTION = 25
"""Of nine functions in ten."""


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions and methods of a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    reached = {module: reachable(module, imports) for module in imports}
    return sorted({tuple(sorted(m for m in found if module in reached[m])) for module, found in reached.items()} - {()})


def reachable(module: str, imports: dict[str, set[str]]) -> set[str]:
    """Every module that `module` imports, directly or through others."""
    found: set[str] = set()
    waiting = list(imports[module])
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += imports[name]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_is_short(file: Path):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LINES_PER_FILE


def test_nine_functions_in_ten_are_short():
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for file in PACKAGE for f in functions(file)]
    assert len(lengths) > 1000
    assert statistics.quantiles(lengths, n=10)[-1] <= LINES_PER_FUNCTION


def test_every_public_function_and_class_says_what_it_does():
    for file in PACKAGE:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or not tree.body, file
        for node in tree.body:
            overload = any(ast.unparse(d) == "overload" for d in getattr(node, "decorator_list", ()))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not overload:
                assert ast.get_docstring(node), f"{file}: {node.name}"


def test_no_module_imports_itself_in_a_circle():
    graph = grimp.build_graph("wsipipe", exclude_type_checking_imports=True)
    imports = {m: set(graph.find_modules_directly_imported_by(m)) for m in graph.modules}
    assert circles(imports) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [("b", "c")]


def test_every_module_has_a_floor():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = (c for c in contracts if c["type"] == "layers" and c["containers"] == ["wsipipe"])
    assert floors["exhaustive"] is True
    named = {name.strip() for layer in floors["layers"] for name in layer.replace(":", "|").split("|")}
    there = {p.stem for p in (ROOT / "wsipipe").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there - {"__init__"} == named
