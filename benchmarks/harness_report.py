"""What was measured, for people and for the record: tables on the terminal, JSON files, the table in README.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import COMPILED, EAGER, OURS, SIMPLE

README = Path(__file__).parent / "README.md"
DIGITS = {"x straightforward": ".2f", "x eager": ".2f", "% of floor": ".0f", "peak MB": ".0f",
          "error": ".0e", "gradient error": ".0e"}  # fmt: skip
"""How columns are written; milliseconds have three digits."""
HEADINGS = {"x straightforward": "x straight-\nforward", "x eager": "x\neager", "% of floor": "% of\nfloor",
            "peak MB": "peak\nMB", "gradient error": "gradient\nerror"}  # fmt: skip
"""On the terminal, so that a table fits 80 columns."""
NARROWEST = 100
"""A table is never broken below so many columns, whatever the terminal says."""


def shown(column: str, value: Any) -> str:
    """A cell."""
    if value is None:
        return ""
    if column.endswith("ms"):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return format(value, DIGITS[column]) if column in DIGITS else str(value)


def print_case(operation: str, case: Mapping[str, Any]) -> None:
    """A table of one case: a row for each form; below it, notes."""
    floor = f"floor {shown('ms', case['floor ms'])} ms by {case['bound by']}"
    how = "forward and backward" if case["backward"] else "forward"
    say(f"\n{operation}: {case['case']}; {how}; {floor}")
    columns = [
        c for c in dict.fromkeys(key for row in case["rows"] for key in row) if c not in ("measurements", "note")
    ]
    columns = [c for c in columns if any(row[c] not in (None, "") for row in case["rows"])]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(HEADINGS.get(column, column), justify="left" if column == "form" else "right", no_wrap=True)
    for row in case["rows"]:
        table.add_row(*(shown(column, row[column]) for column in columns))
    if case["rows"]:
        Console(width=max(NARROWEST, Console().width)).print(table)
    for row in case["rows"]:
        if row["note"]:
            say(f"{row['form']}: {row['note']}")
    if case["note"]:
        say(case["note"])


def say(text: str) -> None:
    """A line on the terminal."""
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def write(folder: Path, operation: str, about: Mapping[str, Any], cases: Iterable[Mapping[str, Any]]) -> None:
    """`FOLDER/OPERATION.json`; written again after every case, so that what is measured is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "cases": [rounded(case) for case in cases]}
    (folder / f"{operation}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """With four digits: more say nothing."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items() if item not in (None, "")}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def read(folder: Path, operations: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Records of a machine, by operation in the order of their names."""
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in sorted(operations)}


def summary(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each case, as README.md has it: milliseconds of every form, ratios, memory, errors."""
    rows = []
    for operation, record in records.items():
        for case in record["cases"]:
            forms = {row["form"]: row for row in case["rows"]}
            ours = forms.get(OURS, {})
            spent = {form: shown("ms", forms.get(form, {}).get("ms")) for form in (OURS, EAGER, COMPILED, SIMPLE)}
            errors = [ours.get("error"), ours.get("gradient error")]
            memory = [shown("peak MB", forms.get(form, {}).get("peak MB")) or "?" for form in (OURS, SIMPLE)]
            rows.append(
                {"operation": f"{operation}: {case['case']}", "": "+ backward" if case["backward"] else "forward"}
                | {f"{form}, ms": cell for form, cell in spent.items()}
                | {"floor, ms": shown("ms", case["floor ms"])}
                | {column: shown(column, ours.get(column)) for column in ("x straightforward", "x eager", "% of floor")}
                | {"peak MB": " / ".join(memory)}
                | {"error": " / ".join(shown("error", error) for error in errors if error is not None)}
            )
    return rows


def put_into_readme(slug: str, rows: list[dict[str, str]], path: Path = README) -> bool:
    """Replace what stands between `<!-- table:kernels-SLUG -->` and `<!-- /table -->`; False: it has no such place."""
    text = path.read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"<!-- table:kernels-{slug} -->\n")
    _, end, after = rest.partition("<!-- /table -->")
    if not (mark and end and rows):
        return False
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    path.write_text(before + mark + "\n".join(lines) + "\n" + end + after, encoding="utf-8")
    return True
