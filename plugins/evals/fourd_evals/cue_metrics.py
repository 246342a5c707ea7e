"""Errors of depth and of flow on the known pixels of one picture."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

DELTA = 1.25
PIXELS = (1.0, 3.0, 5.0)


def depth_errors(
    predicted: Float[Tensor, " n"], truth: Float[Tensor, " n"], limits: tuple[float, float], align: bool = False
) -> Float[Tensor, " 5"]:
    """AbsRel, RMSE (in the truth's unit) and the percent within a factor of 1.25, 1.25^2, 1.25^3 (strictly).

    Args:
        limits: answers are kept within.
        align: fit scale and shift of the answer to the truth by least squares first.
    """
    if align:
        rows = torch.stack([predicted, torch.ones_like(predicted)], 1).double()
        # The pseudo-inverse also serves an answer that is the same everywhere.
        fit = torch.linalg.pinv(rows) @ truth.double()
        predicted = (rows @ fit).to(predicted.dtype)
    predicted = predicted.clamp(*limits)
    difference = predicted - truth
    factor = torch.maximum(predicted / truth, truth / predicted)
    shares = [100 * (factor < DELTA**power).float().mean() for power in (1, 2, 3)]
    return torch.stack([(difference.abs() / truth).mean(), difference.square().mean().sqrt(), *shares])


def flow_errors(predicted: Float[Tensor, "2 n"], truth: Float[Tensor, "2 n"]) -> Float[Tensor, " 4"]:
    """The mean end-point error in pixels, and the percent of pixels whose error is below 1, 3, 5 pixels (strictly)."""
    error = torch.linalg.vector_norm(predicted - truth, dim=0)
    return torch.stack([error.mean(), *(100 * (error < pixels).float().mean() for pixels in PIXELS)])
