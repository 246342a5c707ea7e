"""The measured operations, a module each: `cases(size)` gives them at the sizes of a GPU, of a CPU, or of a quick look.

A new operation is a new module, named in OPERATIONS.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from benchmarks.harness import Case, Size

OPERATIONS = ("ridge", "matching", "map_readout", "local_affinity", "attention", "l4p_track", "l4p_window")


def cases(operation: str, size: Size) -> Iterator[Case]:
    """Of one operation."""
    yield from import_module(f"benchmarks.cases.{operation}").cases(size)
