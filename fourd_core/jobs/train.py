"""The training loop: an objective's samples and losses, AdamW, and a state that survives a kill at any moment.

Every random draw comes from a generator seeded by (recipe seed, stage, sample number), the learning rate is a function
of the step, and checkpoints are whole or absent; so a run that was killed ends with the same bits as one that was not.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from fourd_core.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Dataset, Objective
from fourd_core.jobs import Job
from fourd_core.jobs.stopping import stop_signals
from fourd_core.progress import track
from fourd_core.randomness import generator_for, seed_for
from fourd_core.recipe import ComponentConfig, component
from fourd_core.run_folder import WEIGHTS_FILE, Interrupted, Run

CHECKPOINT_FILE = "checkpoint.safetensors"


class _Batches(TorchDataset[dict[str, Tensor]]):
    """Batch number -> batch, whoever asks and in whatever order."""

    def __init__(self, objective: Objective, data: Dataset, seed: int, stage: str, size: int) -> None:
        self.objective, self.data, self.seed, self.stage, self.size = objective, data, seed, stage, size

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        samples = (
            self.objective.sample(self.data, "train", generator_for(self.seed, self.stage, "sample", number, place))
            for place in range(self.size)
        )
        batch: dict[str, Tensor] = default_collate(list(samples))
        return batch


class TrainJob(Job):
    """Trains heads, memories and the objective's own parameters; the backbone and the cues stay as they are."""

    config: TrainConfig

    def prepare(self) -> None:
        self.objective: Objective = self.system.objectives[self.stage]  # type: ignore[assignment]
        for name in self.config.learn:
            if name not in self.system.heads:
                raise RecipeError(
                    f"stages.{self.stage}.learn: the recipe has no [heads.{name}]; "
                    f"it has: {', '.join(self.system.heads)}"
                )
        trained = (self.system.heads, self.system.memories, self.objective)
        names = ("heads", "memories", f"objectives.{self.stage}")
        self.parameters: dict[str, nn.Parameter] = {
            f"{part}.{name}": parameter
            for part, module in zip(names, trained, strict=True)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and (module is self.objective or self._learns(name.partition(".")[0]))
        }
        if not self.parameters:
            raise RunError(f"[stages.{self.stage}] has nothing to train: every parameter of the heads is frozen")
        self._batch(0)  # opens the data: a missing or unreadable video is found before anything is written

    def _learns(self, head: str) -> bool:
        return not self.config.learn or head in self.config.learn

    def _batch(self, number: int) -> dict[str, Tensor]:
        return _Batches(self.objective, self.data, self.recipe.seed, self.stage, self.config.batch_size)[number]

    def run(self, run: Run) -> None:
        folder, config = run.stage_folder(self.stage), self.config
        if (folder / WEIGHTS_FILE).exists():
            # Written whole at the very end: a kill came before `run.json` could say so.
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
            return
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, weight_decay=config.weight_decay, betas=config.betas
        )
        start = self._resume(folder / CHECKPOINT_FILE, optimizer, run)
        self.system.train(True)
        batches = self._loader(start)
        with stop_signals() as stop_wanted:
            for step in track(range(start, config.steps), self.stage, config.steps, done=start):
                metrics = self._step(step, batches, optimizer)
                if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                    run.log(self.stage, step + 1, metrics)
                if stop_wanted.is_set():
                    self._save(folder, optimizer, step + 1, run)
                    raise Interrupted(self.stage)
                if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                    self._save(folder, optimizer, step + 1, run)
        self.system.train(False)
        self._finish(folder)

    def _loader(self, start: int) -> Iterator[dict[str, Tensor]]:
        config = self.config
        numbers = range(start * config.accumulate, config.steps * config.accumulate)
        batches = _Batches(self.objective, self.data, self.recipe.seed, self.stage, config.batch_size)
        # Map-style with one item per batch: the number of workers changes the speed and nothing else.
        return iter(
            DataLoader(
                batches, batch_size=None, sampler=numbers, num_workers=config.workers,
                pin_memory=self.system.device.type == "cuda", worker_init_fn=_ignore_interrupts,
            )
        )  # fmt: skip

    def _step(
        self, step: int, batches: Iterator[dict[str, Tensor]], optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        config, device = self.config, self.system.device
        torch.manual_seed(seed_for(self.recipe.seed, self.stage, "step", step))  # dropout and the like
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part in range(config.accumulate):
            batch = {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
            generator = generator_for(self.recipe.seed, self.stage, "loss", step * config.accumulate + part)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                losses = self.objective(self.system, batch, generator)
            (losses["loss"] / config.accumulate).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / config.accumulate
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not gradients:
            raise RunError(
                f"[stages.{self.stage}] no gradient reaches what learns ({', '.join(self.config.learn) or 'all'}): "
                "`learn` and the objective must name the same head"
            )
        norm = nn.utils.get_total_norm(gradients)
        sums["gradient_norm"] = float(norm)
        for what in ("loss", "gradient_norm"):
            if not math.isfinite(sums[what]):
                raise RunError(
                    f"[stages.{self.stage}] the {what.replace('_', ' ')} of step {step + 1} is {sums[what]}; look at "
                    "the data of this step, or start a new run with a lower lr or with clip_norm"
                )
        if config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), config.clip_norm, norm)
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return {**sums, "lr": rate}

    def _state(self) -> dict[str, Tensor]:
        """The trained state, without what other stages' objectives own."""
        own = f"objectives.{self.stage}."
        state = self.system.trained_state()
        return {key: value for key, value in state.items() if not key.startswith("objectives.") or key.startswith(own)}

    def _save(self, folder: Path, optimizer: torch.optim.Optimizer, step: int, run: Run) -> None:
        path = folder / CHECKPOINT_FILE
        save_checkpoint(path, self._state(), self.parameters, optimizer, step)
        run.hooks.checkpoint_saved(run=run, stage=self.stage, step=step, path=path)

    def _resume(self, path: Path, optimizer: torch.optim.Optimizer, run: Run) -> int:
        step = 0
        if path.exists():
            state, step = load_checkpoint(path, self.parameters, optimizer)
            self.system.load_trained_state(state, str(path))
            run.note(f"{self.stage}: goes on after step {step}")
        run.forget_metrics_after(self.stage, step)
        return step

    def _finish(self, folder: Path) -> None:
        """Leave the weights; the checkpoint, three times as large, has served."""
        save_tensors(folder / WEIGHTS_FILE, self._state(), {"fourd": json.dumps({"recipe": self.recipe.name})})
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when the loader's workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_betas(_instance: object, _attribute: object, betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be at least 0 and below 1, not {betas}")


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of step `step` (from 0): a linear warm-up, then the schedule over the steps that remain."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * config.decay ** (step // config.decay_every)


@attrs.frozen
class TrainConfig:
    """`job = "train"`: how long and how fast an objective teaches the heads."""

    create: ClassVar[type[Job]] = TrainJob

    objective: ComponentConfig = component("objectives")
    """What is learned; `[stages.NAME.objective] use = "..."`."""
    learn: tuple[str, ...] = ()
    """The heads that learn, by name, each with its memory; none named: all. The others stay as they are."""
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
