"""Progress with the remaining time: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

QUIET_SECONDS = 10.0
"""Away from a terminal (a log file, CI) one line is written this often."""


def track(items: Iterable[T], label: str, total: int, done: int = 0, warm_up: int = 0) -> Iterator[T]:
    """Yield `items`, showing how many of `total` are done and how long is left.

    Args:
        done: so many were done before the start.
        warm_up: so many come first whose time tells nothing of the others': workers start, and work side by side.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total, completed=done)
            for item in items:
                yield item
                bar.advance(task)
    else:
        yield from _lines(items, label, total, done, warm_up)


def _lines(items: Iterable[T], label: str, total: int, done: int, warm_up: int) -> Iterator[T]:
    start = last = time.monotonic()
    for finished, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if finished == warm_up:
            start = now
        if now - last >= QUIET_SECONDS:
            left = ""
            if finished > warm_up:
                pace = (now - start) / (finished - warm_up)
                left = f", about {pace * (total - done - finished):.0f} s left"
            sys.stderr.write(f"{label}: {done + finished} of {total}{left}\n")
            sys.stderr.flush()
            last = now
