"""Weighted ridge regression of cues on pixel features, with bias, and its gradient to the features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import EAGER, OURS, SIMPLE, Case, Form, Inputs, Size
from benchmarks.straightforward import ridge as straightforward
from fourd_core.kernels.ridge import weighted_ridge

RIDGE = 0.1
SIZES = {
    "gpu": ((32, 50176, 128, 35), (128, 1024, 128, 35)),
    "cpu": ((1, 50176, 128, 35), (4, 1024, 128, 35)),
    "quick": ((2, 1024, 32, 35),),
}
"""Clips, rows, features and targets: a whole view, and LILA's pooled to 32 x 32."""


def forms(_: torch.device) -> dict[str, Form]:
    """Ours on a CPU is the definition, whose gradient is in closed form too."""

    def ours(features: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        # Maps with the pixels innermost, as networks make them.
        return weighted_ridge(features.mT, targets.mT, weights, RIDGE, bias=True)

    def simple(features: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return straightforward.weighted_ridge(features.mT, targets.mT, weights, RIDGE)

    return {OURS: ours, EAGER: ours, SIMPLE: simple}


def cases(size: Size) -> Iterator[Case]:
    """The map's gradient goes to the features alone, as in training."""
    for b, n, d, k in SIZES[size]:

        def inputs(g: torch.Generator, b: int = b, n: int = n, d: int = d, k: int = k) -> Inputs:
            at: dict[str, Any] = {"generator": g, "device": g.device}
            targets, weights = torch.randn(b, k, n, **at), torch.rand(b, n, **at)
            return {"features": torch.randn(b, d, n, **at), "targets": targets, "weights": weights}

        yield Case(
            name=f"{b} x {n} rows, {d} + 1 features, {k} targets",
            inputs=inputs,
            forms=forms,
            learned=("features",),
            # Forward and backward read all but the weights' own gradient; the features' gradient is written.
            gigabytes=4 * b * n * (3 * d + 2 * k + 2) / 1e9,
            # Half of the symmetric Gram matrix, the products with the targets, and as much again and more behind.
            gigaflops=2 * b * n * (1.5 * d * d + 2 * d * k) / 1e9,
            unit="tf32",
        )
