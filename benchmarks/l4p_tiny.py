"""What L4P-tiny can do, in numbers: python -m benchmarks.l4p_tiny [NAME=WEIGHTS ...]

On held-out generated scenes (the recipe's `eval` stage): depth, flow, motion masks, cameras and tracks beside trivial
answers, beside the same features with memories that carry less, and beside other weights of the same network (NAME=FILE
for each); on the stereo pair depth and flow. Writes benchmarks/results/l4p_tiny.json and prints tables in Markdown.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import attrs
import torch

from benchmarks.saving import keep
from benchmarks.stereo_pair import StereoPairs
from fourd_core import registry
from fourd_core.build import build_component, build_dataset, build_system
from fourd_core.interfaces import Metric, Result
from fourd_core.recipe import Recipe, load_recipe
from fourd_core.system import System

RECIPE = Path(__file__).parents[1] / "recipes/l4p_tiny.toml"
MEMORIES = ("track_memory", "chain", "none")
Rows = list[dict[str, Any]]


def recipe_with(*overrides: str) -> Recipe:
    """The tiny recipe on the CPU."""
    return load_recipe(RECIPE, ["device=cpu", *overrides])


def metrics_of(recipe: Recipe, **changed: Any) -> dict[str, Metric]:
    """The eval stage's measurements."""
    sections = recipe.stages["eval"].config.metrics
    changes = {name: attrs.evolve(s, config=attrs.evolve(s.config, **changed)) for name, s in sections.items()}
    return {name: build_component(section, 0, name) for name, section in changes.items()}


def as_rows(result: Result, name: str | None = None) -> Rows:
    """A result's rows; the first, the system's, under another name."""
    rows = [dict(row) for row in result.rows]
    if name is not None:
        rows = [{**rows[0], next(iter(rows[0])): name}]
    return rows


def markdown(title: str, rows: Rows) -> str:
    """A table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [f"{row.get(c, ''):.3g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns]
        for row in rows
    ]
    lines = [columns, ["---"] * len(columns), *cells]
    return f"\n{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def on_scenes(others: dict[str, str]) -> dict[str, Rows]:
    """All tasks, with other weights of the same network below."""
    recipe = recipe_with()
    system, data = build_system(recipe), build_dataset(recipe, "eval")
    tables = {name: as_rows(metric.measure(system, data)) for name, metric in metrics_of(recipe).items()}
    for label, weights in others.items():
        other = build_system(recipe_with(f"weights={weights}"))
        for name, metric in metrics_of(recipe, trivial=False).items():
            tables[name] += as_rows(metric.measure(other, data), label)
    return tables


def on_memories(whole: dict[str, Any]) -> Rows:
    """The same weights, tracks through memories that carry all (`whole`), the point alone, or nothing."""
    rows: Rows = [{**whole, next(iter(whole)): MEMORIES[0]}]
    for memory in MEMORIES[1:]:
        recipe = recipe_with(f"memories.track.use={memory}")
        metric = metrics_of(recipe, trivial=False)["tracks"]
        rows += as_rows(metric.measure(build_system(recipe), build_dataset(recipe, "eval")), memory)
    return rows


def on_the_pair(system: System) -> dict[str, Rows]:
    """Depth and flow of a real pair of pictures."""
    tables = {}
    for what, name in (("depth", "video_depth"), ("flow", "video_flow")):
        assert system.recipe is not None
        cls = registry.load("metrics", name)
        data = StereoPairs(what, system.recipe.data.config)  # type: ignore[arg-type]
        tables[what] = as_rows(cls(cls.Config(trivial=True)).measure(system, data))
    return tables


def main() -> None:
    """Measure, print, keep."""
    torch.set_num_threads(1)
    others = dict(word.split("=", 1) for word in sys.argv[1:])
    tables = {f"scenes: {name}": rows for name, rows in on_scenes(others).items()}
    tables["scenes: tracks by memory"] = on_memories(tables["scenes: tracks"][0])
    tables |= {f"stereo pair: {name}": rows for name, rows in on_the_pair(build_system(recipe_with())).items()}
    for name, rows in tables.items():
        sys.stdout.write(markdown(name, rows))
    rows = [{"table": name, **row} for name, table in tables.items() for row in table]
    keep("l4p_tiny", rows, " ".join(["python -m benchmarks.l4p_tiny", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
