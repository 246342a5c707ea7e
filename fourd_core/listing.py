"""`fourd list`: every component by kind, the broken ones with the reason. Plain text: it must come within a blink."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from fourd_core import registry
from fourd_core.probe import probed
from fourd_core.registry import KINDS, Record

NARROWEST = 24
"""Columns that the last column keeps on a narrow terminal."""


def print_components() -> int:
    """Write the table of components to stdout; returns the exit code."""
    # Without a terminal (`fourd list | grep depth`) every component stays on one line.
    width = shutil.get_terminal_size((100_000, 24)).columns
    sys.stdout.write("".join(f"{line}\n" for line in table(probed(registry.records()), width)))
    return 0


def table(records: Sequence[Record], width: int) -> Iterator[str]:
    """The lines of the table: name, distribution, version, one line of description; nothing is cut off.

    Args:
        width: columns of the terminal.
    """
    if not records:
        yield "no components are installed; for example: pip install fourd-plugin-lila"
    times = Counter((record.kind, record.name) for record in records)
    # Two distributions with one name: show what a recipe has to write.
    names = {r: r.name if times[r.kind, r.name] == 1 else r.full_name for r in records}
    first = max((len(name) for name in names.values()), default=0)
    second = max((len(f"{r.distribution} {r.version}") for r in records), default=0)
    for kind in KINDS:
        rows = [record for record in records if record.kind == kind]
        if rows:
            yield kind
        for record in rows:
            left = f"  {names[record]:{first}}  {f'{record.distribution} {record.version}':{second}}  "
            text = record.summary if record.problem is None else f"BROKEN: {record.problem}"
            yield from _beside(left, text, width)
    hidden = [
        d.metadata["Name"] for d in registry.plugin_distributions() if not registry.is_selected(d.metadata["Name"])
    ]
    if hidden:
        yield f'switched off by FOURD_PLUGINS="{os.environ["FOURD_PLUGINS"]}": {", ".join(hidden)}'


def _beside(left: str, text: str, width: int) -> Iterator[str]:
    """`text` to the right of `left`, or below it where the terminal is too narrow for that."""
    if width - len(left) >= NARROWEST:
        lines = textwrap.wrap(text, width - len(left), break_long_words=False, break_on_hyphens=False)
        yield (left + (lines[0] if lines else "")).rstrip()
        yield from (" " * len(left) + line for line in lines[1:])
    else:
        yield left.rstrip()
        yield from textwrap.wrap(
            text, max(width, NARROWEST), initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
