"""Where measurements are kept: a table on the terminal and a JSON file with the command and the machine."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"


def save(name: str, rows: list[dict[str, Any]], command: str) -> None:
    """Print the rows and write `results/NAME.json`."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console().print(table)
    keep(name, rows, command)


def keep(name: str, rows: list[dict[str, Any]], command: str) -> None:
    """Write `results/NAME.json` alone."""
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    FOLDER.mkdir(exist_ok=True)
    content = {"command": command, "machine": machine, "rows": rows}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def readme_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Replace the table between the marks `<!-- table:NAME -->` and `<!-- /table -->` in README.md."""
    path = FOLDER.parent.parent / "README.md"
    text = path.read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"<!-- table:{name} -->\n")
    _, end, after = rest.partition("<!-- /table -->")
    if not (mark and end):
        raise SystemExit(f"README.md has no place marked <!-- table:{name} -->")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    path.write_text(before + mark + "\n".join(lines) + "\n" + end + after, encoding="utf-8")
