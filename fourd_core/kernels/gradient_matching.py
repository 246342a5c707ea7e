"""Masked L1 and edge-weighted gradient matching between a predicted map and a target.

With forward differences D along one axis, edge weight w = 1 - exp(-|D target| / sigma):
    absolute   mean of  w * | |D prediction| - |D target| |     (google-research/lila, func_utils.py)
    signed     mean of  w * |  D prediction  -  D target  |     (LILA paper, edge gradient matching)
The means run over the pairs of neighbours that are both valid; the two axes are averaged apart and added.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GradientForm = Literal["absolute", "signed"]


def masked_mean(values: Float[Tensor, "*shape"], valid: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The mean of the valid values; 0, with gradient 0, where none is valid."""
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def masked_l1(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """The mean absolute difference over the valid numbers; 0 where none is valid."""
    return masked_mean((prediction - target).abs(), valid)


def gradient_matching(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    valid: Bool[Tensor, "b c h w"],
    sigma: float = 0.1,
    form: GradientForm = "absolute",
) -> Float[Tensor, ""]:
    """How far the prediction's edges are from the target's, most where the target has edges; 0 where nothing is valid.

    Args:
        sigma: the target's step at which the weight reaches 1 - 1/e, in the target's unit.
        form: compare absolute or signed forward differences.
    """
    loss = prediction.new_zeros(())
    # A NaN where nothing is valid would reach the gradient through 0 * NaN.
    target = torch.where(valid, target, 0)
    for axis in (-1, -2):
        step, wanted = prediction.diff(dim=axis), target.diff(dim=axis)
        weight = 1 - torch.exp(-wanted.abs() / sigma)
        difference = step.abs() - wanted.abs() if form == "absolute" else step - wanted
        size = valid.shape[axis] - 1
        both = valid.narrow(axis, 0, size) & valid.narrow(axis, 1, size)
        loss = loss + masked_mean(weight * difference.abs(), both)
    return loss
