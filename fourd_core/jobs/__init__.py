"""What a stage of a recipe can do.

`JOBS` maps a stage's `job = "..."` to the dotted place of its Config (the stage's keys). A Config's `create` is the
class that does the work. Nothing is imported until a recipe asks for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourd_core.interfaces import Dataset
    from fourd_core.recipe import Recipe
    from fourd_core.run_folder import Run
    from fourd_core.system import System

JOBS: dict[str, str] = {
    "cues": "fourd_core.jobs.cues:CuesConfig",
    "train": "fourd_core.jobs.train:TrainConfig",
    "predict": "fourd_core.jobs.predict:PredictConfig",
    "evaluate": "fourd_core.jobs.evaluate:EvaluateConfig",
}


class Job(ABC):
    """One stage's work. `prepare` finds every mistake it can before anything is written; `run` may be called again in
    a folder where it was interrupted and then goes on where it was."""

    def __init__(self, stage: str, config: Any, system: System, data: Dataset, recipe: Recipe) -> None:
        self.stage, self.config, self.system, self.data, self.recipe = stage, config, system, data, recipe

    @abstractmethod
    def prepare(self) -> None:
        """Check the inputs.

        Raises:
            FourdError: what is wrong and what to do.
        """

    @abstractmethod
    def run(self, run: Run) -> None:
        """Do the work, writing into `run.stage_folder(self.stage)`.

        Raises:
            FourdError: the work failed.
            Interrupted: the user stopped it; what was done is saved.
        """
