"""Computations that are written otherwise than in their papers, for speed, and give the same numbers but for rounding.

Each has a switch, so that tests and measurements can compare it with the form as it is published:

    SHARED = Rewrite("shared tokens", saves="...")
    ...
    if SHARED.on:            # in the code that has both forms
    with SHARED.off():       # in a test
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class Rewrite:
    """One rewritten computation; on unless switched off, for all threads.

    Args:
        name: a few words.
        saves: one sentence on what it saves, with numbers; `docs/rewrites.md` has the same.
    """

    known: ClassVar[dict[str, Rewrite]] = {}
    """All that were made so far, by name."""

    def __init__(self, name: str, saves: str) -> None:
        self.name, self.saves, self.on = name, saves, True
        Rewrite.known[name] = self

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it, the form as published runs."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before
