"""Predictions of whole videos: arrays as they are finished, then pictures that people can look at."""

from __future__ import annotations

from typing import ClassVar

import attrs

from fourd_core.jobs import Job
from fourd_core.media.views import ViewConfig
from fourd_core.run import Run


class PredictJob(Job):
    """Streams every video of the data through the system."""

    def prepare(self) -> None:
        pass

    def run(self, run: Run) -> None:
        pass


@attrs.frozen
class PredictConfig:
    """`job = "predict"`: what the network sees of the videos, and what is kept of its answers."""

    create: ClassVar[type[Job]] = PredictJob

    view: ViewConfig = attrs.field(factory=ViewConfig)
    """How a frame becomes the network's input."""
    window: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Frames per forward pass."""
