"""The training loop: an objective's samples and losses, AdamW, and a state that survives a kill at any moment.

Every random draw comes from a generator seeded by (recipe seed, stage, sample number), the learning rate is a function
of the step, and checkpoints are whole or absent; so a run that was killed ends with the same bits as one that was not.
Under torchrun every process learns from samples of its own, and all of them take the same steps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import ClassVar, Literal

import attrs
from torch import Tensor, nn

from fourd_core import distributed
from fourd_core.checkpoint import Checkpoint, optimizer_state, restore_optimizer, save_tensors
from fourd_core.cues import open_kept
from fourd_core.errors import FourdError, RecipeError, RunError
from fourd_core.interfaces import Objective
from fourd_core.jobs import Job
from fourd_core.jobs.averaging import Average
from fourd_core.jobs.batches import Batches
from fourd_core.jobs.optimisation import NotFiniteError, Optimisation
from fourd_core.jobs.stopping import stop_signals
from fourd_core.jobs.validation import BEST_FILE, Validation, keep_if_best, read_facts
from fourd_core.progress import track
from fourd_core.recipe import ComponentConfig, component, components
from fourd_core.run_folder import WEIGHTS_FILE, Interrupted, Run
from fourd_core.weights import read_state_dict

CHECKPOINT_FILE = "checkpoint.safetensors"


class TrainJob(Job):
    """Trains heads, memories, the objective's own parameters and as much of the backbone as `learn_blocks` says."""

    config: TrainConfig

    def prepare(self) -> None:
        config, self.group = self.config, distributed.current()
        self.objective: Objective = self.system.objectives[self.stage]  # type: ignore[assignment]
        self.system.load_cues()
        for name in config.learn:
            if name not in self.system.heads:
                raise RecipeError(
                    f"stages.{self.stage}.learn: the recipe has no [heads.{name}]; "
                    f"it has: {', '.join(self.system.heads)}"
                )
        self.parameters = self._learning()
        if not self.parameters:
            raise RunError(f"[stages.{self.stage}] has nothing to train: every parameter of the heads is frozen")
        if config.steps < config.warmup and self.group.first:
            sys.stderr.write(
                f"note: [stages.{self.stage}] ends after {config.steps} steps, within its warm-up of {config.warmup}: "
                "the learning rate never reaches lr\n"
            )
        self.batches = Batches(self.objective, self.data, self.recipe.seed, self.stage, config.batch_size)
        if self.recipe.cue_cache is None:
            # Opens the data, or makes some: what is missing or does not fit is found before anything is written.
            self.objective.complete(self.data, self.batches[0])
        else:  # videos that cannot be read are known once the cues are there, and left out
            self.data.videos("train")
        self.validation = (
            Validation(config.validation, self.recipe, self.stage, self.system, self.data)
            if config.validation and self.group.first
            else None
        )

    def _learning(self) -> dict[str, nn.Parameter]:
        """What this stage trains, by name.

        Raises:
            RecipeError: the backbone has not so many blocks, or cannot be trained in part.
        """
        self._free_backbone()
        trained: tuple[nn.Module, ...] = (
            self.system.backbone, self.system.heads, self.system.memories, self.objective
        )  # fmt: skip
        names = ("backbone", "heads", "memories", f"objectives.{self.stage}")
        return {
            f"{part}.{name}": parameter
            for part, module in zip(names, trained, strict=True)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
            and (module in (self.system.backbone, self.objective) or self._learns(name.partition(".")[0]))
        }

    def _free_backbone(self) -> None:
        try:
            self.system.learn_backbone(self.config.learn_blocks)
        except ValueError as error:
            raise RecipeError(f"stages.{self.stage}.learn_blocks: {error}") from error

    def _learns(self, head: str) -> bool:
        return not self.config.learn or head in self.config.learn

    def run(self, run: Run) -> None:
        folder, config = run.stage_folder(self.stage), self.config
        if self.group.from_first((folder / WEIGHTS_FILE).exists):
            # Written whole at the very end: a kill came before `run.json` could say so.
            if self.group.first:
                (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
            return
        self._free_backbone()  # each stage's own choice, which the stage before may have changed
        self.optimisation = Optimisation(
            config, self.recipe, self.stage, self.system, self.data, self.objective, self.parameters
        )
        self.average = Average(self.parameters, config.ema) if config.ema is not None else None
        self.done, self.flat = self._start(folder / CHECKPOINT_FILE, run), False
        self._open_kept(run)
        self.system.train(True)
        try:
            self._loop(run, folder)
        except FourdError:
            # The first complaint counts; a full disk may refuse this file too.
            with suppress(FourdError):
                self._save(folder, run)
            raise
        self.system.train(False)
        self.system.learn_backbone(0)
        if self.group.first:
            self._finish(folder)
        # A later stage needs the room of the gradients and of the optimiser's state.
        self.system.zero_grad(set_to_none=True)
        del self.optimisation, self.average

    def _loop(self, run: Run, folder: Path) -> None:
        config = self.config
        numbers = range(self.done * config.accumulate, config.steps * config.accumulate)
        batches = self.batches.load(numbers, config.workers, self.system.device)
        with stop_signals() as stop_wanted:
            if self.group.size > 1:
                distributed.be_patient(stop_wanted)
            for step in self._track(range(self.done, config.steps)):
                try:
                    metrics = self.optimisation.step(step, batches)
                except NotFiniteError as error:
                    raise self._explained(error) from None
                if metrics["gradient_norm"] == 0:
                    self._note_no_gradient(run, step)
                if self.average is not None:
                    self.average.update()
                self.done = step + 1
                last = self.done == config.steps
                validated = self._validate(run, folder, metrics)
                if self.done % config.log_every == 0 or last or validated:
                    run.log(self.stage, self.done, metrics)
                if self.group.any(stop_wanted.is_set()):
                    self._save(folder, run)
                    raise Interrupted(self.stage)
                if self.done % config.checkpoint_every == 0 and not last:
                    self._save(folder, run)

    def _note_no_gradient(self, run: Run, step: int) -> None:
        """Say it once: one such step may be chance, all of them are a training that learns nothing."""
        if not self.group.first or self.flat:
            return
        self.flat = True
        note = f"[stages.{self.stage}] the gradient of step {step + 1} is zero: nothing is learned from it"
        sys.stderr.write(f"note: {note}; where that goes on, look at the data and the teachers (metrics.jsonl)\n")
        run.note(note)

    def _track(self, steps: range) -> Iterable[int]:
        return track(steps, self.stage, steps.stop, done=steps.start) if self.group.first else steps

    def _explained(self, error: NotFiniteError) -> RunError:
        """Which samples may be to blame for a step, drawn once more, and what to do."""
        described = [self.objective.describe(self.data, self.batches[number]) for number in error.batches]
        samples = "; ".join(filter(None, described))
        return RunError(
            f"[stages.{self.stage}] {error}{f', of {samples}' if samples else ''}. The state before it is saved: look "
            "at the data of this step and run the same command again, which repeats it; or start a new run with a "
            "lower lr or with clip_norm"
        )

    def _validate(self, run: Run, folder: Path, metrics: dict[str, float]) -> bool:
        """Where it is time to: measure, keep the weights if they are the best; says whether it was."""
        config, step = self.config, self.done
        every = config.validate_every or config.steps
        if self.validation is None or (step % every and step != config.steps):
            return False
        with self.average.in_place() if self.average is not None else nullcontext():
            metrics |= self.validation.measure(run, step)
            facts = {"recipe": self.recipe.name, "step": step, "score": metrics["validation_score"]}
            keep_if_best(folder / BEST_FILE, self._state(), facts)
        return True

    def _open_kept(self, run: Run) -> None:
        """What teachers said before, where a stage with `job = "cues"` keeps it."""
        if self.recipe.cue_cache is None:
            return
        config = self.config
        kept = open_kept(
            self.recipe, self.system, self.data, self.stage, self.objective,
            config.steps * config.accumulate, config.batch_size * self.group.size,
        )  # fmt: skip
        self.objective.kept_cues = kept
        what = f"cues from {kept.shown}" if kept is not None else "teachers run as training goes"
        run.note(f"{self.stage}: {what}")

    def _state(self) -> dict[str, Tensor]:
        """The trained state, without what other stages' objectives own."""
        own = f"objectives.{self.stage}."
        state = self.system.trained_state()
        return {key: value for key, value in state.items() if not key.startswith("objectives.") or key.startswith(own)}

    def _save(self, folder: Path, run: Run) -> None:
        if not self.group.first:
            return
        path = folder / CHECKPOINT_FILE
        optimizer = optimizer_state(self.optimisation.optimizer, self.parameters)
        average = self.average.tensors if self.average is not None else {}
        Checkpoint(self._state(), self.done, optimizer, average, self.group.size).save(path)
        run.hooks.checkpoint_saved(run=run, stage=self.stage, step=self.done, path=path)

    def _start(self, path: Path, run: Run) -> int:
        """Begin, or go on where the checkpoint is, every process where the first one does; returns the steps done.

        Raises:
            RunError: another number of processes made the checkpoint.
        """
        size = self.group.size

        def first() -> Checkpoint:
            if path.exists():
                return Checkpoint.read(path)
            return Checkpoint({key: value.cpu() for key, value in self._state().items()}, processes=size)

        start = self.group.from_first(first)
        if start.processes != size:
            raise RunError(
                f"{path} is of a training by {start.processes} processes, and now there are {size}, which learn from "
                f"other samples; go on with `torchrun --nproc-per-node {start.processes}`, or choose another folder "
                "with --out"
            )
        self.system.load_trained_state(start.model, str(path))
        restore_optimizer(self.optimisation.optimizer, self.parameters, start.optimizer, str(path))
        if self.average is not None:
            self.average.restore(start.average)
        if start.step:
            run.note(f"{self.stage}: goes on after step {start.step}")
        run.forget_metrics_after(self.stage, start.step)
        return start.step

    def _finish(self, folder: Path) -> None:
        """Leave the weights, in the file and in the system; the checkpoint, three times as large, has served."""
        state, facts = self._state(), {"recipe": self.recipe.name}
        if self.config.keep == "best" and (folder / BEST_FILE).exists():
            state, facts = read_state_dict(str(folder / BEST_FILE)), read_facts(folder / BEST_FILE)
        elif self.average is not None:
            state |= self.average.tensors
        self.system.load_trained_state(state, str(folder))
        save_tensors(folder / WEIGHTS_FILE, state, {"fourd": json.dumps(facts)})
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _check_betas(_instance: object, _attribute: object, betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be at least 0 and below 1, not {betas}")


def _check_share(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{attribute.name} must be at least 0 and below 1, not {value}")


@attrs.frozen
class TrainConfig:
    """`job = "train"`: how long and how fast an objective teaches the heads."""

    create: ClassVar[type[Job]] = TrainJob

    objective: ComponentConfig = component("objectives")
    """What is learned; `[stages.NAME.objective] use = "..."`."""
    data: ComponentConfig | None = component("datasets", None)
    """`[stages.NAME.data] use = "..."`: what this stage learns from; none: the recipe's `[data]`."""
    by_name: bool = False
    """Run only where the command names this stage: `fourd run RECIPE STAGE`."""
    learn: tuple[str, ...] = ()
    """The heads that learn, by name, each with its memory; none named: all. The others stay as they are."""
    learn_blocks: int = attrs.field(default=0, validator=attrs.validators.ge(-1))
    """How many of the backbone's last blocks learn too, with what follows them; -1: all of it."""
    start: Literal["weights", "fresh"] = "weights"
    """From the recipe's `weights` where it names some, or afresh whatever it names (for other stages)."""
    steps: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    """Optimiser steps in all."""
    batch_size: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Samples per forward pass."""
    accumulate: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """Forward passes per optimiser step."""
    lr: float = attrs.field(default=1e-4, validator=attrs.validators.gt(0))
    """AdamW's learning rate after the warm-up."""
    weight_decay: float = attrs.field(default=1e-4, validator=attrs.validators.ge(0))
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.999), validator=_check_betas)
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """After the warm-up: constant, half a cosine to zero, or times `decay` every `decay_every` steps."""
    warmup: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Steps of linear warm-up."""
    decay: float = attrs.field(default=0.99, validator=attrs.validators.gt(0))
    decay_every: int = attrs.field(default=10_000, validator=attrs.validators.ge(1))
    clip_norm: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    """Largest norm of the whole gradient; None: as it is."""
    checkpoint_every: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    """Steps between checkpoints; a killed run repeats at most this many."""
    log_every: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    workers: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Processes that read and crop samples; any number gives the same result."""
    ema: float | None = attrs.field(default=None, validator=attrs.validators.optional(_check_share))
    """Average the weights over the steps, after each `ema` times the average plus the rest of the new ones; the average
    is what is measured and left (0.999, say). None: the last weights."""
    validation: dict[str, ComponentConfig] = components("metrics")
    """`[stages.NAME.validation.X] use = "..."`: the first of these metrics whose data is there measures while training
    goes, and its score chooses the best weights."""
    validate_every: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Steps between two measurements; the last step is always measured. None: only that."""
    keep: Literal["last", "best"] = "last"
    """Which weights are left: the last ones, or those with the highest score."""

    def __attrs_post_init__(self) -> None:
        if not self.validation and (self.validate_every is not None or self.keep == "best"):
            key = "validate_every" if self.validate_every is not None else 'keep = "best"'
            raise ValueError(f"{key} needs a metric: add a section [stages.NAME.validation.X]")
