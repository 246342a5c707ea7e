"""L4P's tracking head over two windows of 16 frames, the second with what the memory kept of the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import l4p
from benchmarks.harness import EAGER, OURS, SIMPLE, Case, Form, Inputs, Size
from fourd_core.data import Queries

SIZES = {"gpu": (1408, 128), "cpu": (384, 64), "quick": (32, 2)}
"""Channels and points; `python -m benchmarks.l4p --width 1408` measures the published width on a CPU."""
TOKENS = l4p.GRID.t * l4p.GRID.h * l4p.GRID.w


def _form(runner: Any, network: torch.nn.Module) -> Form:
    def run(first: Tensor, second: Tensor, frame: Tensor, xy: Tensor) -> tuple[Tensor, ...]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(first.dtype)
        try:
            with first.device:
                tracker = runner(network.to(first.dtype), Queries(frame, xy))
                return *tracker.window(first, last=False), *tracker.window(second, last=True)
        finally:
            torch.set_default_dtype(before)

    return run


def cases(size: Size) -> Iterator[Case]:
    """Positions, visibility and depth of both windows."""
    width, points = SIZES[size]

    def forms(device: torch.device) -> dict[str, Form]:
        ours = _form(l4p.Fourd, l4p.fourd(width).to(device))
        simple = _form(l4p.Straightforward, l4p.straightforward(width).to(device))
        return {OURS: ours, EAGER: ours, SIMPLE: simple}

    def inputs(g: torch.Generator) -> Inputs:
        at: dict[str, Any] = {"generator": g, "device": g.device}
        first, second = (torch.randn(TOKENS, width, **at) for _ in l4p.WINDOWS)
        frame = torch.randint(0, l4p.FRAMES, (1, points), **at)
        xy = l4p.SIDE * torch.rand(1, points, 2, **at)
        return {"first": first, "second": second, "frame": frame, "xy": xy}

    pixels = TOKENS * 8  # of the maps between the two transposed convolutions
    yield Case(
        name=f"{points} points, {width} channels, two windows",
        inputs=inputs,
        forms=forms,
        gigabytes=2 * 4 * TOKENS * width / 1e9,
        # What no form can avoid: the second transposed convolution of every point.
        gigaflops=2 * points * 2 * pixels * (width // 4) * (width // 2) / 1e9,
        compiled=None,
    )
