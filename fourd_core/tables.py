"""Where tables are printed: a terminal has its width, a log file has all the room that they need."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

ANY = 10_000
"""Columns: wider than any table."""


def console_for(*tables: Table) -> Console:
    """A console on stdout in which these tables are cut or wrapped by nothing but a terminal."""
    console = Console()
    if not console.is_terminal:
        wide = Console(width=ANY)
        console.width = max([console.width, *(wide.measure(table).maximum for table in tables)])
    return console
