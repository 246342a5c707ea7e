"""The hook implementation: one event writer for each stage of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fourd_core.hooks import hookimpl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from fourd_core.run_folder import Run


class TensorBoard:
    """Every logged number of a run as a TensorBoard scalar, in `<run folder>/tensorboard/<stage>`."""

    def __init__(self) -> None:
        self.writers: dict[str, SummaryWriter] = {}

    @hookimpl
    def fourd_step_finished(self, run: Run, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar for each number, under its name."""
        if stage not in self.writers:
            from torch.utils.tensorboard import SummaryWriter  # as slow to import as it is rarely needed

            # A resumed stage repeats the steps after its checkpoint: `purge_step` hides the older ones.
            folder = run.folder / "tensorboard" / stage
            self.writers[stage] = SummaryWriter(folder, purge_step=step)  # type: ignore[no-untyped-call]
        for name, value in metrics.items():
            self.writers[stage].add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    @hookimpl
    def fourd_checkpoint_saved(self) -> None:
        """Write what is still in memory: what a checkpoint holds is not repeated after a kill."""
        for writer in self.writers.values():
            writer.flush()  # type: ignore[no-untyped-call]

    @hookimpl
    def fourd_run_finished(self) -> None:
        """Write what is still in memory, and close the files."""
        for writer in self.writers.values():
            writer.close()  # type: ignore[no-untyped-call]
        self.writers.clear()
