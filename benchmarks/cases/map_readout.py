"""The tracking head's soft argmax: a position from each frame's small heat map."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import EAGER, OURS, SIMPLE, Case, Form, Inputs, Size
from benchmarks.straightforward import map_readout as straightforward
from fourd_core.kernels.map_readout import expected_position

SIZES = {"gpu": (128, 80, 16, 64, 224), "cpu": (16, 8, 16, 64, 224), "quick": (2, 1, 4, 16, 56)}
"""Points in prediction and in training, frames, side of the maps and of the video."""


def eager(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """The definition on all maps at once: ours works through a few at a time where Triton does not run."""
    likely = F.interpolate(heat, size, mode="bilinear").flatten(2).softmax(-1).unflatten(-1, size)
    rows, columns = (torch.arange(n, device=heat.device) + 0.5 for n in size)
    return torch.stack([(likely.sum(-2) * columns).sum(-1), (likely.sum(-1) * rows).sum(-1)], -1)


def cases(size: Size) -> Iterator[Case]:
    """Forward, and forward with backward."""
    predicted, trained, frames, side, pixels = SIZES[size]

    def forms(_: torch.device) -> dict[str, Form]:
        three = {OURS: expected_position, EAGER: eager, SIMPLE: straightforward.expected_position}
        return {name: partial(form, size=(pixels, pixels)) for name, form in three.items()}

    for count, learned in ((predicted, ()), (trained, ("heat",))):

        def inputs(g: torch.Generator, count: int = count) -> Inputs:
            return {"heat": 2 * torch.randn(count, frames, side, side, generator=g, device=g.device)}

        ways = 2 if learned else 1
        yield Case(
            name=f"{count} points, {frames} frames, {side} -> {pixels} pixels",
            inputs=inputs,
            forms=forms,
            learned=learned,
            gigabytes=(ways + bool(learned)) * 4 * count * frames * side * side / 1e9,
            # Of an enlarged pixel: two products to interpolate, an exponential, three sums.
            gigaflops=ways * 16 * count * frames * pixels * pixels / 1e9,
        )
