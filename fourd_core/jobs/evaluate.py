"""Measurements of the trained system: each metric gives a table, printed, kept as JSON and shown in the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from rich.table import Table

from fourd_core.build import build_component
from fourd_core.errors import RecipeError, RunError
from fourd_core.files import write_json
from fourd_core.interfaces import Metric, Result
from fourd_core.jobs import Job
from fourd_core.recipe import ComponentConfig, Location, component, components
from fourd_core.run_folder import Run
from fourd_core.tables import console_for

RESULT_FILE = "result.json"


class EvaluateJob(Job):
    """Runs every metric of the stage and puts recorded results of the same protocol beside them."""

    config: EvaluateConfig

    def prepare(self) -> None:
        where = f"stages.{self.stage}.metrics"
        self.metrics: dict[str, Metric] = {
            name: build_component(section, self.recipe.seed, f"{where}.{name}")
            for name, section in self.config.metrics.items()
        }
        self._leave_out_what_lacks_data()
        for metric in self.metrics.values():
            metric.prepare(self.system, self.data)
        self.others = [(place, _read_results(place)) for place in self.config.beside]

    def _leave_out_what_lacks_data(self) -> None:
        absent = [name for name, metric in self.metrics.items() if not metric.available(self.system, self.data)]
        keys = ", ".join(self._root_key(name) for name in absent)
        only_checked = self.system.device.type == "meta"
        if absent and len(absent) == len(self.metrics) and not only_checked:
            raise RecipeError(
                f"[stages.{self.stage}] has nothing to measure: the stage's data has no video for it, and no other "
                f"data set is named by {keys}"
            )
        if absent:
            sys.stderr.write(f"note: {', '.join(absent)} not measured, since no data set is named: {keys}\n")
        self.metrics = {name: metric for name, metric in self.metrics.items() if name not in absent}

    def _root_key(self, name: str) -> str:
        """The key that names the folder that a metric measures on."""
        own = hasattr(self.config.metrics[name].config, "data")
        return f"stages.{self.stage}.metrics.{name}.{'data.' if own else ''}root"

    def run(self, run: Run) -> None:
        tables = []
        for metric in self.metrics.values():
            with torch.no_grad():
                table = as_table(metric.measure(self.system.eval(), self.data))
            for place, results in self.others:
                _put_beside(table, results, place)
            _show(table)
            tables.append(table)
        write_json(run.stage_folder(self.stage) / RESULT_FILE, tables)


def as_table(result: Result) -> dict[str, Any]:
    """A result as plain JSON values."""
    return {
        "title": result.title,
        "rows": [dict(row) for row in result.rows],
        "protocol": result.protocol,
        "notes": list(result.notes),
    }


def _read_results(place: str) -> list[dict[str, Any]]:
    """The tables of a result file, or of every evaluate stage of a run folder.

    Raises:
        RunError: there are none.
    """
    path = Path(place)
    files = sorted(path.glob(f"*/{RESULT_FILE}")) if path.is_dir() else [path]
    try:
        tables = [table for file in files for table in json.loads(file.read_text(encoding="utf-8"))]
        whole = all(table.keys() >= {"title", "rows", "protocol"} for table in tables)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"`beside` names {place}, which holds no results ({error})") from error
    if not (tables and whole):
        raise RunError(f"`beside` names {place}, which holds no results; name a run folder or its {RESULT_FILE}")
    return tables


def _put_beside(table: dict[str, Any], others: list[dict[str, Any]], place: str) -> None:
    """Add another run's rows where the protocol is the same; say what differs where it is not."""
    for other in others:
        if other["title"] != table["title"]:
            continue
        differing = sorted(
            key
            for key in table["protocol"].keys() | other["protocol"].keys()
            if table["protocol"].get(key) != other["protocol"].get(key)
        )
        if differing:
            table["notes"].append(f"{place} is not shown: it was measured with another {', '.join(differing)}")
            continue
        known = {next(iter(row.values())) for row in table["rows"]}
        added = [row for row in other["rows"] if next(iter(row.values())) not in known]
        table["rows"] += added
        if added:
            names = ", ".join(str(next(iter(row.values()))) for row in added)
            table["notes"].append(f"not measured in this run but recorded in {place}: {names}")


def _show(table: dict[str, Any]) -> None:
    columns = list(dict.fromkeys(key for row in table["rows"] for key in row))
    shown = Table(*columns, title=table["title"])
    for row in table["rows"]:
        shown.add_row(*(_cell(row.get(column, "")) for column in columns))
    console = console_for(shown)
    console.print(shown)
    for note in table["notes"]:
        console.print(note, highlight=False)


def _cell(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@attrs.frozen
class EvaluateConfig:
    """`job = "evaluate"`: what to measure."""

    create: ClassVar[type[Job]] = EvaluateJob

    metrics: dict[str, ComponentConfig] = components("metrics")
    """`[stages.NAME.metrics.X] use = "..."`."""
    data: ComponentConfig | None = component("datasets", None)
    """`[stages.NAME.data] use = "..."`: what this stage measures on; none: the recipe's `[data]`."""
    by_name: bool = False
    """Run only where the command names this stage: `fourd run RECIPE STAGE`."""
    beside: tuple[Location, ...] = ()
    """Run folders or result files whose rows stand in the same table, where they were measured the same way."""
