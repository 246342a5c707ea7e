"""`report.html`: one self-contained page with what a run did, how long it took and what came out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jinja2

from fourd_core.errors import RunError
from fourd_core.files import atomic
from fourd_core.report.contents import read_contents
from fourd_core.report.curves import draw_charts


def write_report(run_folder: Path) -> Path:
    """Write `report.html` from what lies in `run_folder` and return its path.

    May be called at any time, also after an interrupted run; the page appears whole or not at all. It contains no
    script and refuses every network address by its own content security policy.

    Raises:
        RunError: there is no such folder, or it cannot be written to.
    """
    if not run_folder.is_dir():
        raise RunError(f"{run_folder} is not a run folder, so there is nothing to report on; name one that a run left.")
    contents = read_contents(run_folder)
    charts = {stage: draw_charts(series.values(), stage) for stage, series in contents.metrics.stages.items() if series}
    pieces = _template().generate(contents=contents, run=contents.run, charts=charts, folder=run_folder.resolve())
    with atomic(run_folder / "report.html") as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces)  # piece by piece: one embedded video at a time is in memory
    return run_folder / "report.html"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fourd_core", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, number=number, shell=shlex.join)
    return environment.get_template("report.html.j2")


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 3.2 s, 2 min 03 s, 1 h 05 min."""
    if seconds is None:
        return ""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: Any) -> str:
    """A cell of a table: four significant digits for a fraction, text as it is, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        ordinary = value == 0 or 1e-4 <= abs(value) < 1e4
        return f"{value:#.4g}".rstrip(".") if ordinary else f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
