"""The linear read-out as it is solved on a frame. Source: google-research/lila, `forward_cross`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourd_core.kernels.ridge import weighted_ridge
from fourd_core.precision import at_least_float32


def pooled(maps: Float[Tensor, "b c h w"], pool: int) -> Float[Tensor, "b c pool pool"]:
    """The means of as many rows and columns of cells."""
    h, w = maps.shape[-2:]
    if h % pool or w % pool or not maps.shape[1]:
        return F.adaptive_avg_pool2d(maps, pool)
    return F.avg_pool2d(maps, (h // pool, w // pool))  # the same, with gradients that repeat exactly on a GPU too


def row_weights(
    confidence: Float[Tensor, "b c h w"], pool: int = 32, min_confidence: float = 0.5
) -> Float[Tensor, "b pool_pool"]:
    """How much each pooled place counts in the solve: the product of the teachers' mean confidences, 0 where it is
    below `min_confidence`, 1 where there are no teachers."""
    weights = pooled(at_least_float32(confidence), pool).flatten(2).prod(dim=1)
    return torch.where(weights < min_confidence, 0, weights)


def solve_readout(
    features: Float[Tensor, "b d h w"],
    cues: Float[Tensor, "b k h w"],
    confidence: Float[Tensor, "b c h w"],
    pool: int = 32,
    min_confidence: float = 0.5,
    ridge: float = 0.1,
) -> Float[Tensor, "b d_plus_1 k"]:
    """The linear map with bias (its last row) that best explains the cues by the features.

    Args:
        confidence: of the teachers; a place's weight is the product of the channels (1 without any).
        pool: features, cues and confidence are first averaged to this many rows and columns.
        min_confidence: places of a smaller product have no weight.
        ridge: weight of the norm of the map, bias included.
    Raises:
        RunError: numbers that are not finite.
    """
    x, y = (pooled(at_least_float32(maps), pool).flatten(2).mT for maps in (features, cues))
    weights = row_weights(confidence, pool, min_confidence)
    return weighted_ridge(x, y, weights, ridge, bias=True)
