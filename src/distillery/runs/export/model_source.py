"""The source of a network in one file of plain PyTorch, which loads it without this package."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from distillery.core.errors import UserError

INLINED = ("distillery.models.", "distillery.losses.", "distillery.core.errors")
HEADER = '''"""{what}, written by `distill-export`. `load()` gives the trained network.

It takes images, or tokens, as preprocessing.json says.
"""

from __future__ import annotations

'''
LOADER = '''

def build():
    """The network with new weights."""
    return {call}


def load(folder=Path(__file__).parent):
    """The trained network, in evaluation mode."""
    net = build()
    net.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return net.eval()
'''


class NotPlain(UserError):
    """A network whose source is more than a few definitions: it is built by the package."""


def model_source(settings: Mapping[str, Any]) -> str:
    """A module with `build()` and `load(folder)`, from the definitions that the network is made of.

    Args:
        settings: `student.net` of a resolved config: `_target_`, its arguments, and the same for parts of it.

    Raises:
        NotPlain: the network needs more of this package than definitions of networks.
    """
    bundle = _Bundle()
    call = bundle.call(settings)
    head = HEADER.format(what=settings["_target_"].rpartition(".")[2])
    return "\n\n\n".join([head + bundle.all_imports(), *bundle.parts]) + LOADER.format(call=call)


class _Bundle:
    """Definitions in an order in which Python can run them, and the imports that they need."""

    def __init__(self) -> None:
        self.imports = {"from pathlib import Path", "from safetensors.torch import load_file"}
        self.parts: list[str] = []
        self.names: dict[tuple[str, str], str] = {}  # of each definition, by its module and its name there

    def call(self, settings: Mapping[str, Any]) -> str:
        """What builds the network of these settings, as an expression."""
        module, _, name = settings["_target_"].rpartition(".")
        __import__(module)
        name = self.add(sys.modules[module], name)
        given = [
            f"{key}={self.value(value)}" for key, value in settings.items() if not (key[0] == "_" and key[-1] == "_")
        ]
        if settings.get("_partial_"):
            self.imports.add("from functools import partial")
            return f"partial({', '.join([name, *given])})"
        return f"{name}({', '.join(given)})"

    def value(self, value: Any) -> str:
        return self.call(value) if isinstance(value, Mapping) and "_target_" in value else repr(value)

    def add(self, module: ModuleType, name: str) -> str:
        """Add the definition of a module's global, after those that it refers to; returns what it is called here."""
        if module.__name__.partition(".")[0] != "distillery":
            self.imports.add(f"from {module.__name__} import {name}")
            return name
        statement = _statement(module, name)
        if isinstance(statement, ast.ImportFrom) and not _is_external(statement):
            found = next(each for each in statement.names if (each.asname or each.name) == name)
            __import__(str(statement.module))
            return self.add(sys.modules[str(statement.module)], found.name)
        if isinstance(statement, ast.ImportFrom | ast.Import):
            self.imports.add(_imported(name, statement))
            return name
        if statement is None:
            raise NotPlain(f"{module.__name__} does not define {name} at its top")
        if not f"{module.__name__}.".startswith(INLINED):
            raise NotPlain(f"{name} is of {module.__name__}")
        key = (module.__name__, name)
        if key in self.names:
            return self.names[key]
        leaf = module.__name__.rpartition(".")[2]
        self.names[key] = f"{name}_of_{leaf}" if name in self.names.values() else name
        source = ast.get_source_segment(inspect.getsource(module), statement)
        assert source is not None
        called = {name: self.names[key]}
        for other, in_annotation in _names(statement):
            if hasattr(module, other) and (not in_annotation or _is_external(_statement(module, other))):
                called[other] = self.add(module, other)
        for there, here in called.items():
            source = re.sub(rf"\b{there}\b", here, source) if there != here else source
        self.parts.append(source)
        return self.names[key]

    def all_imports(self) -> str:
        """One line for each module."""
        plain = sorted(each for each in self.imports if each.startswith("import "))
        named: dict[str, list[str]] = {}
        for each in sorted(self.imports - set(plain)):
            module, _, name = each.removeprefix("from ").partition(" import ")
            named.setdefault(module, []).append(name)
        return "\n".join([*plain, *(f"from {module} import {', '.join(names)}" for module, names in named.items())])


def _statement(module: ModuleType, name: str) -> ast.stmt | None:
    """The statement of a module that defines or imports a name."""
    body = ast.parse(inspect.getsource(module)).body
    return next((statement for statement in body if name in _defined(statement)), None)


def _is_external(statement: ast.stmt | None) -> bool:
    return isinstance(statement, ast.ImportFrom) and not str(statement.module).startswith("distillery.")


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((each.asname or each.name).partition(".")[0] for each in statement.names)
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id


def _imported(name: str, statement: ast.Import | ast.ImportFrom) -> str:
    """The part of an import statement that gives a name."""
    if isinstance(statement, ast.Import):
        return f"import {name}"
    found = next(each for each in statement.names if (each.asname or each.name) == name)
    return f"from {statement.module} import {found.name}{f' as {found.asname}' if found.asname else ''}"


def _names(node: ast.AST, in_annotation: bool = False) -> Iterator[tuple[str, bool]]:
    """The names in a definition, and whether it is in an annotation, which is not evaluated."""
    if isinstance(node, ast.Name):
        yield node.id, in_annotation
    for key, value in ast.iter_fields(node):
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield from _names(each, in_annotation or key in ("annotation", "returns"))
