"""One optimiser step: losses and gradients of its batches, averaged over all processes, then AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fourd_core import distributed
from fourd_core.errors import RunError
from fourd_core.interfaces import Dataset, Objective
from fourd_core.jobs.batches import Batch
from fourd_core.randomness import generator_for, seed_for
from fourd_core.recipe import Recipe
from fourd_core.system import System

if TYPE_CHECKING:
    from fourd_core.jobs.train import TrainConfig


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


class NotFiniteError(RunError):
    """A loss or a gradient is NaN or infinite.

    Attributes:
        batches: the numbers of the batches that it may come from.
    """

    def __init__(self, what: str, batches: range) -> None:
        super().__init__(what)
        self.batches = batches


class Optimisation:
    """AdamW on named parameters, a step at a time.

    A step that fails leaves parameters, optimiser and the modules' buffers as they were before it.
    """

    def __init__(
        self, config: TrainConfig, recipe: Recipe, stage: str, system: System, data: Dataset,
        objective: Objective, parameters: Mapping[str, nn.Parameter],
    ) -> None:  # fmt: skip
        self.config, self.recipe, self.stage, self.system = config, recipe, stage, system
        self.data, self.objective, self.parameters = data, objective, parameters
        self.group = distributed.current()
        learning = (system.backbone, system.heads, system.memories, objective)
        self.buffers = [buffer for module in learning for buffer in module.buffers()]
        self.optimizer = torch.optim.AdamW(
            parameters.values(), lr=config.lr, weight_decay=config.weight_decay, betas=config.betas
        )

    def step(self, step: int, batches: Iterator[Batch]) -> dict[str, float]:
        """Learn from the next `accumulate` batches; returns the mean losses, the gradient's norm and the rate.

        Raises:
            NotFiniteError: a loss or the gradient is not finite, in this process.
            RunError: nothing learns, or another process failed.
        """
        buffers = [buffer.clone() for buffer in self.buffers]
        try:
            losses = self._losses(step, batches)
            norm = self._norm(step)
            if self.group.size > 1:
                losses = self._average(losses)
                norm = self._norm(step)
        except BaseException:
            for buffer, before in zip(self.buffers, buffers, strict=True):
                buffer.copy_(before)
            raise
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.clip_norm, norm)
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return {**losses, "gradient_norm": float(norm), "lr": rate}

    def _batches_of(self, step: int) -> range:
        return range(step * self.config.accumulate, (step + 1) * self.config.accumulate)

    def _purpose(self, *purpose: str | int) -> tuple[str | int, ...]:
        """What a draw of this process is for; the first one draws as it would alone."""
        return (self.stage, *purpose) if self.group.first else (self.stage, *purpose, self.group.rank)

    def _losses(self, step: int, batches: Iterator[Batch]) -> dict[str, float]:
        """Forward and backward for every batch of the step in this process; the losses' mean over these."""
        config, device, seed = self.config, self.system.device, self.recipe.seed
        torch.manual_seed(seed_for(seed, *self._purpose("step", step)))  # dropout and the like
        self.system.zero_grad(set_to_none=True)  # also of what the loss reaches and this stage does not train
        sums: dict[str, float] = {}
        for number in self._batches_of(step):
            batch = {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
            generator = generator_for(seed, *self._purpose("loss", number))
            batch = dict(self.objective.complete(self.data, batch))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                losses = self.objective(self.system, batch, generator)
            values = {name: float(value.detach()) for name, value in losses.items()}
            if not math.isfinite(values["loss"]):
                raise NotFiniteError(_wrong_losses(values, step), range(number, number + 1))
            (losses["loss"].float() / config.accumulate).backward()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / config.accumulate
        return sums

    def _average(self, losses: dict[str, float]) -> dict[str, float]:
        """Make every process's gradients their mean; returns the losses' mean, each over those that have it."""
        own = losses, [parameter.grad is not None for parameter in self.parameters.values()]
        everyone = self.group.exchange(own)
        # What has a gradient in one process has one in all: zero, where it took no part.
        for parameter, *present in zip(self.parameters.values(), *(theirs for _, theirs in everyone), strict=True):
            if any(present) and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.group.average_([p.grad for p in self.parameters.values() if p.grad is not None])
        names = dict.fromkeys(name for theirs, _ in everyone for name in theirs)
        values = {name: [theirs[name] for theirs, _ in everyone if name in theirs] for name in names}
        return {name: sum(found) / len(found) for name, found in values.items()}

    def _norm(self, step: int) -> Tensor:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not gradients:
            raise RunError(
                f"[stages.{self.stage}] no gradient reaches what learns ({', '.join(self.config.learn) or 'all'}): "
                "`learn` and the objective must name the same head"
            )
        norm = nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)):
            raise NotFiniteError(f"the gradient norm of step {step + 1} is {float(norm)}", self._batches_of(step))
        return norm


def _wrong_losses(values: Mapping[str, float], step: int) -> str:
    others = [f"{name} is {value}" for name, value in values.items() if name != "loss" and not math.isfinite(value)]
    return f"the loss of step {step + 1} is {values['loss']}" + (f" ({', '.join(others)})" if others else "")
