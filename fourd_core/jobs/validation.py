"""Measuring a system while it learns, and keeping the weights that did best.

A measurement changes nothing of the training: the weights, the modes and the random state are as before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fourd_core.build import build_component
from fourd_core.checkpoint import save_tensors
from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Dataset, Metric
from fourd_core.randomness import seeded
from fourd_core.recipe import ComponentConfig, Recipe
from fourd_core.run_folder import Run
from fourd_core.system import System

BEST_FILE = "best.safetensors"
"""The weights with the highest score so far, in the stage's folder; its metadata has step and score."""


class Validation:
    """The first metric of a training stage whose data is there."""

    def __init__(
        self, sections: Mapping[str, ComponentConfig], recipe: Recipe, stage: str, system: System, data: Dataset
    ) -> None:
        """Choose the metric and let it look for mistakes.

        Raises:
            FourdError: none is available, or what the chosen one finds.
        """
        self.recipe, self.stage, self.system, self.data = recipe, stage, system, data
        where = f"stages.{stage}.validation"
        for name, section in sections.items():
            metric: Metric = build_component(section, recipe.seed, f"{where}.{name}")
            if metric.available(system, data):
                metric.prepare(system, data)
                self.name, self.metric = name, metric
                return
        raise RecipeError(
            f"{where}: what {' and '.join(sections)} would measure on is not there; add a metric that needs only the "
            "recipe's own [data], or leave validation out"
        )

    def measure(self, run: Run, step: int) -> dict[str, float]:
        """Measure the system as it is, note the table in the log; returns what to put beside the step's losses.

        Raises:
            FourdError: what the metric says, or that it has no score.
        """
        with seeded(self.recipe.seed, self.stage, "validation", step), torch.no_grad():
            result = self.metric.measure(self.system.eval(), self.data)
        self.system.train(True)
        table = json.dumps([*result.rows], ensure_ascii=False)
        run.note(f"{self.stage}: step {step}, {self.name}: score {result.score}, {result.title}: {table}")
        if result.score is None:
            raise RunError(
                f"[stages.{self.stage}.validation.{self.name}] measures no score, by which weights are compared; "
                "choose another metric"
            )
        return {"validation_score": result.score}


def keep_if_best(path: Path, state: Mapping[str, Tensor], facts: dict[str, Any]) -> bool:
    """Write the weights where their score is higher than that of those that are there; says whether it was.

    Args:
        facts: `score`, `step` and what else goes into the metadata.
    """
    best = read_facts(path)["score"] if path.exists() else -math.inf
    if not facts["score"] > best:
        return False
    save_tensors(path, state, {"fourd": json.dumps(facts)})
    return True


def read_facts(path: Path) -> dict[str, Any]:
    """The metadata of weights that training left."""
    with safe_open(path, "pt") as handle:
        facts: dict[str, Any] = json.loads(handle.metadata()["fourd"])
    return facts
