"""PAMR: the weights of a guide and rounds of averaging, at one size and by LILA's schedule."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from fourd_pamr import PAMR
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, OURS, SIMPLE, Case, Form, Inputs, Size
from benchmarks.straightforward import local_affinity as straightforward
from fourd_core.kernels.local_affinity import local_affinity, propagate

DILATIONS, NEIGHBOURS, ROUNDS = (1, 3, 5), 24, 10
SIZES = {"gpu": ((8, 384, 224), (4, 32, 224)), "cpu": ((1, 16, 112), (4, 32, 224)), "quick": ((1, 4, 32), (1, 4, 64))}
"""Maps, channels and side: of one size, and of the schedule (from 16 x 16 tokens)."""


def one_size(_: torch.device) -> dict[str, Form]:
    """Ten rounds."""

    def ours(maps: Tensor, guide: Tensor) -> Tensor:
        return propagate(maps, local_affinity(guide, DILATIONS, 0.05, 1e-5), DILATIONS, ROUNDS)

    def simple(maps: Tensor, guide: Tensor) -> Tensor:
        return straightforward.refined(maps, guide, ROUNDS)

    def compiled(maps: Tensor, guide: Tensor) -> Tensor:
        weights = _compiled(local_affinity)(guide, DILATIONS, 0.05, 1e-5)
        for _ in range(ROUNDS):  # all rounds in one graph would be minutes of compiling
            maps = _compiled(propagate)(maps, weights, DILATIONS, 1)
        return maps

    return {OURS: ours, EAGER: ours, COMPILED: compiled, SIMPLE: simple}


@cache
def _compiled(function: Form) -> Form:
    return torch.compile(function, dynamic=False)


def schedule(_: torch.device) -> dict[str, Form]:
    """20 rounds at 56 x 56, 10 at 112 x 112, 5 at the guide's size."""
    pamr = PAMR(PAMR.Config())

    def ours(maps: Tensor, guide: Tensor) -> Tensor:
        return pamr(maps, guide)

    return {OURS: ours, EAGER: ours, SIMPLE: straightforward.scheduled}


def work(b: int, c: int, side: int, rounds: int) -> tuple[float, float]:
    """Gigabytes and operations of rounds of averaging: maps read and written, weights read."""
    pixels = b * side * side
    moved = 4 * pixels * (rounds * (2 * c + NEIGHBOURS) + NEIGHBOURS + 3)
    return moved / 1e9, 2 * rounds * pixels * c * NEIGHBOURS / 1e9


def cases(size: Size) -> Iterator[Case]:
    """Both carry no gradient."""
    single, staged = SIZES[size]
    for kind, (b, c, side) in (("single", single), ("staged", staged)):
        small = side if kind == "single" else 16

        def inputs(g: torch.Generator, shape: tuple[int, ...] = (b, c, small, small), side: int = side) -> Inputs:
            at = {"generator": g, "device": g.device}
            # Maps away from 0, a guide with edges: noise alone would have no weights worth the name.
            coarse = torch.rand(shape[0], 3, side // 8, side // 8, **at)
            guide = torch.nn.functional.interpolate(coarse, (side, side)) + 0.05 * torch.rand(
                shape[0], 3, side, side, **at
            )
            return {"maps": torch.randn(shape, **at) + 1, "guide": guide}

        stages = [(ROUNDS, side)] if kind == "single" else [(20, 56), (10, 112), (5, side)]
        parts = [work(b, c, pixels, rounds) for rounds, pixels in stages]
        title = f"{ROUNDS} rounds" if kind == "single" else "LILA's schedule"
        yield Case(
            name=f"{title} of {b} x {c} x {side} x {side}",
            inputs=inputs,
            forms=one_size if kind == "single" else schedule,
            gigabytes=sum(moved for moved, _ in parts),
            gigaflops=sum(flops for _, flops in parts),
            compiled=None,
        )
