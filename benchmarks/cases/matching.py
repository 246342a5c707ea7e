"""LILA's loss and its gradient: of a given prediction, and of a readout of features whose prediction nobody keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import EAGER, OURS, SIMPLE, TF32, Case, Form, Inputs, Size
from benchmarks.straightforward import matching as straightforward
from fourd_core.kernels import gradient_matching as kernel
from fourd_core.kernels.linear_matching import linear_matching

SIZES = {"gpu": (32, 128, 35, 224), "cpu": (2, 128, 35, 224), "quick": (2, 32, 5, 56)}
"""Views, features, cues and side."""
KINK = 1e-2
"""Further than tf32 rounds a prediction."""


def matching_forms(_: torch.device) -> dict[str, Form]:
    """The definitions are the public `masked_l1` and `gradient_matching`."""

    def ours(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        return kernel.matching(prediction, target, valid).loss

    return {OURS: ours, EAGER: _defined, SIMPLE: straightforward.matching}


def linear_forms(device: torch.device) -> dict[str, Form]:
    """The definition multiplies first. On a GPU ours once more, with torch told to take tf32 for its products."""

    def ours(features: Tensor, readout: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        return linear_matching(features, readout, target, valid).loss

    def eager(features: Tensor, readout: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        pixels = readout[:, :-1].mT @ features.flatten(2) + readout[:, -1:].mT
        return _defined(pixels.reshape(target.shape), target, valid)

    def in_tf32(**inputs: Tensor) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return ours(**inputs)  # with its gradients, which are made at once
        finally:
            torch.set_float32_matmul_precision(before)

    forms: dict[str, Form] = {OURS: ours, EAGER: eager, SIMPLE: straightforward.linear_matching}
    return forms | ({TF32: in_tf32} if device.type == "cuda" else {})


def _defined(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return kernel.masked_l1(prediction, target, valid) + kernel.gradient_matching(prediction, target, valid)


def _clear(found: Inputs) -> Tensor:
    """Where the loss has no kink nearby, at which the prediction's rounding would decide a gradient's sign."""
    target, readout = found["target"].double(), found["readout"].double()
    prediction = straightforward.prediction(found["features"].double(), readout)
    clear = (prediction - target).abs() > KINK
    for axis in (-1, -2):
        step, wanted = prediction.diff(dim=axis).abs(), target.diff(dim=axis).abs()
        clear.narrow(axis, 0, step.shape[axis]).logical_and_((step > KINK) & ((step - wanted).abs() > KINK))
    return clear


def cases(size: Size) -> Iterator[Case]:
    """One in ten numbers is not valid."""
    b, d, k, side = SIZES[size]
    numbers = b * k * side * side

    def cues(g: torch.Generator) -> Inputs:
        shape, at = (b, k, side, side), {"generator": g, "device": g.device}
        return {"target": torch.randn(shape, **at), "valid": torch.rand(shape, **at) > 0.1}

    def predicted(g: torch.Generator) -> Inputs:
        return {"prediction": torch.randn(b, k, side, side, generator=g, device=g.device)} | cues(g)

    def from_features(g: torch.Generator) -> Inputs:
        at: dict[str, Any] = {"generator": g, "device": g.device}
        readout = torch.randn(b, d + 1, k, **at) / d**0.5
        found = {"features": torch.randn(b, d, side, side, **at), "readout": readout} | cues(g)
        found["valid"] &= _clear(found)
        return found

    yield Case(
        name=f"loss of {b} x {k} x {side} x {side}",
        inputs=predicted,
        forms=matching_forms,
        learned=("prediction",),
        gigabytes=numbers * (3 * 4 + 1) / 1e9,
        gigaflops=numbers * 40 / 1e9,
    )
    yield Case(
        name=f"prediction and loss of {b} x {k} x {side} x {side}, {d} + 1 features",
        inputs=from_features,
        forms=linear_forms,
        learned=("features", "readout"),
        gigabytes=(b * side * side * d * 2 * 4 + numbers * (4 + 1)) / 1e9,
        gigaflops=numbers * 6 * d / 1e9,
        unit="tf32",
    )
