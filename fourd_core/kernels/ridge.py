"""Weighted ridge regression, solved in closed form for every sample of a batch, differentiable in all its inputs.

    W* = argmin_W  1/N sum_n c_n |W' x_n - y_n|^2 + ridge |W|^2  =  (X'CX/N + ridge I)^-1 X'CY/N

N counts all rows, those of weight 0 too, so that a sample with few trusted rows is regularised more. Every row of W is
penalised; for a bias append a constant 1 to the features. Source: LILA, linear in-context learning
(google-research/lila/lila/dpt_lila.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.errors import RunError


def weighted_ridge(
    features: Float[Tensor, "b n d"], targets: Float[Tensor, "b n k"], weights: Float[Tensor, "b n"], ridge: float
) -> Float[Tensor, "b d k"]:
    """The linear map from features to targets that has the least weighted squared error plus `ridge` times its norm.

    Computed in float32 (float64 for float64 inputs), also under autocast.

    Args:
        weights: one per row, >= 0.
        ridge: > 0; without it fewer rows than features have no unique solution.
    Raises:
        RunError: a sample has no solution, because its numbers are not finite or a weight is negative.
    """
    accurate = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        x, y, c = features.to(accurate), targets.to(accurate), weights.to(accurate)
        _, n, d = x.shape
        weighted = (x * c[..., None]).mT / n
        gram = weighted @ x + ridge * torch.eye(d, dtype=accurate, device=x.device)
        factor, info = torch.linalg.cholesky_ex(gram)
        solution = torch.cholesky_solve(weighted @ y, factor)
    _require_solved((info == 0) & solution.isfinite().all(-1).all(-1))
    return solution


def _require_solved(solved: Tensor) -> None:
    if not bool(solved.all()):
        failed = ", ".join(str(i) for i in (~solved).nonzero().flatten().tolist())
        raise RunError(
            f"the ridge regression has no solution for sample {failed} of the batch: its features, targets or weights "
            "are not finite, or a weight is negative; lower the learning rate or look for a bad cue"
        )
