"""Weighted ridge regression by its normal equations. Source: google-research/lila/lila/dpt_lila.py `forward_cross`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def weighted_ridge(
    features: Float[Tensor, "b n d"], targets: Float[Tensor, "b n k"], weights: Float[Tensor, "b n"], ridge: float
) -> Float[Tensor, "b d_plus_1 k"]:
    """The linear map with bias, its last row: a column of ones is appended and the gradient is autograd's."""
    x = torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)
    weighted = (x * weights[..., None]).transpose(1, 2) / x.shape[1]
    gram = weighted @ x + ridge * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, weighted @ targets)
