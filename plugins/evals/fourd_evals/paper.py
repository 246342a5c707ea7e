"""The numbers that the L4P and LILA papers print, as rows that stand below ours.

`tables/paper_tables.json` holds one entry per printed column. A metric of ours names its own columns and says which
printed metric each of them is compared with.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import attrs

from fourd_core.system import System

NAME = "features"
"""The first column of every table of evaluations: whose features were measured."""

ABOUT_SYSTEM = ("head", "tap", "features", "split", "seed")
"""Keys that say what is measured; the others are the paper's protocol as long as they have their defaults."""

PaperTable = Literal["main", "4", "5", "none"]
"""Which of LILA's tables is shown beside our number: the main results, the cues (4), the training (5), or none."""


@attrs.frozen
class PaperColumn:
    """One printed column: a metric on a data set, for the methods of one table."""

    paper: str
    """`L4P` or `LILA`."""
    table: str
    """The table's number; `main` for LILA's two tables of main results."""
    caption: str
    dataset: str
    metric: str
    unit: str
    better: str
    """`higher` or `lower`."""
    rows: dict[str, float]
    """Values by the method's name."""
    notes: dict[str, str] | str = ""
    """What is printed beside the values: one text for all, or texts by method."""


@cache
def paper_columns() -> tuple[PaperColumn, ...]:
    """Every column of every table."""
    text = (files("fourd_evals") / "tables" / "paper_tables.json").read_text(encoding="utf-8")
    return tuple(PaperColumn(**column) for column in json.loads(text)["columns"])


def paper_rows(
    dataset: str, metrics: Mapping[str, str], table: str = "main", paper: str = "LILA"
) -> tuple[dict[str, str | float], ...]:
    """The paper's rows for one data set, under our names of the columns, in the order of print.

    Args:
        dataset: as the tables call it, for example `DAVIS-2017 val`.
        metrics: our column -> the tables' metric, for example `{"J&F": "J&F linear probe"}`.
        table: `main`, or a table's number; a table that lacks the data set has no rows.
    Raises:
        ValueError: no table of this paper has such a column.
    """
    rows: dict[str, dict[str, str | float]] = {}
    for ours, metric in metrics.items():
        columns = [c for c in paper_columns() if (c.paper, c.dataset, c.metric) == (paper, dataset, metric)]
        if not columns:
            raise ValueError(f'no table of the {paper} paper has "{metric}" on "{dataset}"')
        for method, value in (item for c in columns if c.table == table for item in c.rows.items()):
            name = f"{method} (paper)" if table == "main" else f"{method} (paper, table {table})"
            rows.setdefault(name, {NAME: name})[ours] = value
    return tuple(rows.values())


def changed_note(ours: Mapping[str, Any], paper: Mapping[str, Any], besides: Collection[str]) -> str | None:
    """A sentence about the settings that are not the paper's, None where all are.

    Args:
        besides: keys that are no part of the protocol, beside those in `ABOUT_SYSTEM`.
    """
    changed = [key for key in ours if key not in (*besides, *ABOUT_SYSTEM) and ours[key] != paper[key]]
    if not changed:
        return None
    return f"not the paper's protocol: {', '.join(f'{key} = {ours[key]} instead of {paper[key]}' for key in changed)}"


def our_name(system: System) -> str:
    """What our own row is called: the recipe's name."""
    return "this system" if system.recipe is None else system.recipe.name
