"""What the source of an entry point says without running it: is it there, can it be parsed, what is it for."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import attrs


@attrs.frozen
class Look:
    """What reading the source told."""

    summary: str = ""
    problem: str | None = None


def find_module(name: str) -> ModuleSpec | None:
    """Where a module would be imported from; unlike `importlib.util.find_spec` this imports no parent package."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)  # asks editable installs too, and imports nothing for a name without dots
        path = top
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            path = f"{path}.{part}"
            spec = PathFinder.find_spec(path, list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError):
        return None
    return spec


def look_at(entry_point: str) -> Look:
    """Look at `package.module:Class` in its source file."""
    module, _, path = entry_point.partition(":")
    spec = find_module(module.strip())
    if spec is None:
        return Look(problem=f"the module {module} is missing; reinstall the plugin")
    if spec.origin is None or not spec.origin.endswith(".py"):  # compiled, zipped: only an import can tell
        return Look()
    source = Path(spec.origin)
    try:
        return _look(source, source.stat().st_mtime_ns, path.strip().partition(".")[0])
    except SyntaxError as error:
        return Look(problem=f"{source} has a syntax error in line {error.lineno}; reinstall or repair the plugin")
    except (OSError, ValueError) as error:
        return Look(problem=f"{source} cannot be read: {error}; reinstall the plugin")


@functools.lru_cache(maxsize=512)
def _look(source: Path, _mtime: int, name: str) -> Look:
    tree = _parse(source, _mtime)
    if not name:
        return Look(_first_line(tree))
    for node in _top_level(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Look(_first_line(node))
        if not _bound_names(node).isdisjoint((name, "*")):
            return Look()
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        return Look()
    return Look(problem=f"{source} does not define {name}; reinstall or update the plugin")


@functools.lru_cache(maxsize=64)
def _parse(source: Path, _mtime: int) -> ast.Module:
    return ast.parse(source.read_bytes(), str(source))


def _first_line(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those inside `if` and `try` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            handlers = getattr(node, "handlers", [])
            yield from _top_level(
                [*node.body, *node.orelse, *(inner for handler in handlers for inner in handler.body)]
            )


def _bound_names(node: ast.stmt) -> set[str]:
    """Names that an import or an assignment makes; `*` may make any."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()
