"""LILA's loss from whole maps. Source: LILA paper; google-research/lila, func_utils.py."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def matching(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    valid: Bool[Tensor, "b c h w"],
    sigma: float = 0.1,
    edge_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Masked L1 plus the edge-weighted difference of absolute gradients; every step a tensor of full size."""
    mask = valid.to(prediction.dtype)
    l1 = ((prediction - target).abs() * mask).sum() / mask.sum()
    dx, dy = _gradients(prediction, target, mask, -1, sigma), _gradients(prediction, target, mask, -2, sigma)
    return l1 + edge_weight * (dx + dy)


def _gradients(prediction: Tensor, target: Tensor, mask: Tensor, axis: int, sigma: float) -> Tensor:
    last = prediction.shape[axis] - 1
    p, t, m = ((x.narrow(axis, 0, last), x.narrow(axis, 1, last)) for x in (prediction, target, mask))
    both = m[0] * m[1]
    step, wanted = (p[1] - p[0]).abs(), (t[1] - t[0]).abs()
    weight = 1 - torch.exp(-wanted / sigma)
    return (weight * (step - wanted).abs() * both).sum() / both.sum()


def linear_matching(
    features: Float[Tensor, "b d h w"],
    readout: Float[Tensor, "b d_plus_1 k"],
    target: Float[Tensor, "b k h w"],
    valid: Bool[Tensor, "b k h w"],
) -> Float[Tensor, ""]:
    """The loss of the readout of the features, a channel of ones appended."""
    return matching(prediction(features, readout), target, valid)


def prediction(features: Float[Tensor, "b d h w"], readout: Float[Tensor, "b d_plus_1 k"]) -> Float[Tensor, "b k h w"]:
    """A linear map of every pixel."""
    pixels = torch.cat([features, torch.ones_like(features[:, :1])], dim=1).flatten(2)
    return torch.bmm(readout.transpose(1, 2), pixels).unflatten(2, features.shape[-2:])
