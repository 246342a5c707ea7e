"""Weighted ridge regression, solved in closed form for every sample of a batch, differentiable in all its inputs.

    W* = argmin_W  1/N sum_n c_n |W' x_n - y_n|^2 + ridge |W|^2  =  (X'CX/N + ridge I)^-1 X'CY/N

N counts all rows, those of weight 0 too, so that a sample with few trusted rows is regularised more. Every row of W is
penalised; for a bias append a constant 1 to the features. Source: LILA, linear in-context learning
(google-research/lila/lila/dpt_lila.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.errors import RunError
from fourd_core.precision import own_precision


def weighted_ridge(
    features: Float[Tensor, "b n d"], targets: Float[Tensor, "b n k"], weights: Float[Tensor, "b n"], ridge: float
) -> Float[Tensor, "b d k"]:
    """The linear map from features to targets that has the least weighted squared error plus `ridge` times its norm.

    Computed in float32 (float64 for float64 inputs), also under autocast.

    Args:
        weights: one per row, >= 0.
        ridge: > 0; without it fewer rows than features have no unique solution.
    Raises:
        RunError: a sample has no solution: its numbers are not finite, a weight is negative, or the features are too
            large or too alike for this precision.
    """
    accurate = torch.promote_types(features.dtype, torch.float32)
    with own_precision(features.device):
        x, y, c = features.to(accurate), targets.to(accurate), weights.to(accurate)
        _, n, d = x.shape
        weighted = (x * c[..., None]).mT / n
        gram = weighted @ x + ridge * torch.eye(d, dtype=accurate, device=x.device)
        factor, info = torch.linalg.cholesky_ex(gram)
        solution = torch.cholesky_solve(weighted @ y, factor)
    solved = (info == 0) & solution.isfinite().all(-1).all(-1)
    if not bool(solved.all()):
        raise RunError(_why_unsolved(~solved, x, y, c))
    return solution


def _why_unsolved(
    failed: Bool[Tensor, " b"], x: Float[Tensor, "b n d"], y: Float[Tensor, "b n k"], c: Float[Tensor, "b n"]
) -> str:
    usable = (c.isfinite() & (c >= 0)).all(1) & x.isfinite().flatten(1).all(1) & y.isfinite().flatten(1).all(1)
    broken = failed & ~usable
    if broken.any():
        return (
            f"the ridge regression has no solution for sample {_numbers(broken)} of the batch: its features, targets "
            "or weights are not finite, or a weight is negative; lower the learning rate or look for a bad cue"
        )
    return (
        f"the ridge regression has no solution for sample {_numbers(failed)} of the batch: its numbers are too large "
        f"or too ill-conditioned for {str(x.dtype).removeprefix('torch.')}; normalise the features or raise `ridge`"
    )


def _numbers(chosen: Bool[Tensor, " b"]) -> str:
    return ", ".join(str(i) for i in chosen.nonzero().flatten().tolist())
