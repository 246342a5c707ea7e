"""What imports what inside the core: no circle, neither of modules nor of packages that do different things."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import fourd_core

ROOT = Path(fourd_core.__file__).parent


def imported(path: Path) -> set[str]:
    """Modules of the core that one imports as it is imported itself, not later and not for type checkers alone."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fourd_core"):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if name in MODULES} or {str(node.module)}
    return found


MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
GRAPH = {name: imported(path) for name, path in MODULES.items()}


def test_no_circle_of_modules() -> None:
    assert len(list(TopologicalSorter(GRAPH).static_order())) >= len(MODULES) > 80


def test_jobs_use_the_viewer_and_not_the_other_way_round() -> None:
    packages = {name.split(".")[1] for module in GRAPH if ".viewer" in module for name in GRAPH[module] if "." in name}
    assert "media" in packages
    assert "jobs" not in packages
