"""A command that a plugin brings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fourd_core.errors import RunError

SUMMARY = "greets people"
ENTRY_POINTS = """
[fourd.commands]
greet = command_parts
"""


def install(folder: Path, points: str = ENTRY_POINTS) -> None:
    """Let whoever has `folder` in its path find this plugin."""
    info = folder / "command_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: command-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom, and how often."""
    parser.add_argument("name", nargs="+")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--code", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    """Greet; nobody called Nobody."""
    if "Nobody" in options.name:
        raise RunError("Nobody is not a person; name one")
    sys.stdout.write(f"hello {' and '.join(options.name)}\n" * options.times)
    return int(options.code)
