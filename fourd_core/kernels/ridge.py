"""Weighted ridge regression, solved in closed form for every sample of a batch, differentiable in all its inputs.

    W* = argmin_W  1/N sum_n c_n |W' x_n - y_n|^2 + ridge |W|^2  =  A^-1 R
    A = X'CX/N + ridge I,   R = X'CY/N

N counts all rows, those of weight 0 too, so that a sample with few trusted rows is regularised more. Every row of W is
penalised, a bias too. Source: LILA, linear in-context learning (google-research/lila/lila/dpt_lila.py).

Gradients by implicit differentiation, with V = dL/dW* and Z = A^-1 V from the same Cholesky factor:

    dL/dx_n = c_n/N (Z y_n - (Z W*' + W* Z') x_n)    dL/dy_n = c_n/N Z'x_n    dL/dc_n = 1/N (Z'x_n)'(y_n - W*'x_n)

On a GPU, Triton kernels read the rows once for A and R and once for dL/dx; the factor is torch's. Rows may lie in
memory as they like: maps (b d h w) come as `maps.flatten(2).mT`, without a copy. Averaging maps to fewer rows stays
outside: it reads every pixel once and writes a few percent of them; doing both in one pass would save only these.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.errors import RunError
from fourd_core.kernels.choice import by_triton
from fourd_core.precision import own_precision

# Not by `torch.library.custom_op`, whose first call imports torch's compiler: 3 s.
torch.library.define(
    "fourd::ridge",
    "(Tensor features, Tensor targets, Tensor weights, float ridge, bool bias) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fourd::ridge_features_gradient",
    "(Tensor features, Tensor targets, Tensor weights, Tensor z, Tensor m, Tensor solved, float ridge) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


class Solved(NamedTuple):
    """Ridge regressions of a batch: f is d, or d + 1 with a bias."""

    readout: Float[Tensor, "b f k"]
    """0, and with gradient 0, where there is no solution."""
    solved: Bool[Tensor, " b"]
    """False where there is none: numbers that are not finite, a negative weight, features too large or too alike."""


def weighted_ridge(
    features: Float[Tensor, "b n d"],
    targets: Float[Tensor, "b n k"],
    weights: Float[Tensor, "b n"],
    ridge: float,
    bias: bool = False,
) -> Float[Tensor, "b f k"]:
    """The linear map from features to targets that has the least weighted squared error plus `ridge` times its norm.

    Computed in float32 (float64 for float64 features), also under autocast. On a GPU float32's products run on tensor
    cores: for `ridge` >= 0.01 in tf32, which moves predictions by 1e-4, the map by 5e-4 and the features' gradients by
    2e-3 of their norms (128 features of unit scale, their spectrum exp(-6i/128), N = 1024, tf32 imitated on a CPU;
    float32: 1e-6, 5e-6, 5e-6); below 0.01 in three products of tf32, which are as good as float32's. The gradients
    are not differentiable again.

    Args:
        weights: one per row, >= 0; the numbers of a row of weight 0 must be finite too.
        ridge: > 0, finite; without it fewer rows than features have no unique solution.
        bias: a feature that is 1 in every row joins them; its row of the map is the last, f = d + 1.
    Raises:
        ValueError: the shapes do not belong together, or `ridge` is not above 0 and finite.
        RunError: a sample has no solution: its numbers are not finite, a weight is negative, or the features are too
            large or too alike for this precision.
    """
    readout, solved = solve_ridge(features, targets, weights, ridge, bias)
    if not bool(solved.all()):
        raise RunError(_why_unsolved(~solved, features, targets, weights, readout.dtype))
    return readout


def solve_ridge(
    features: Float[Tensor, "b n d"],
    targets: Float[Tensor, "b n k"],
    weights: Float[Tensor, "b n"],
    ridge: float,
    bias: bool = False,
) -> Solved:
    """As `weighted_ridge`, telling of samples without a solution instead of raising: no GPU is waited for.

    Raises:
        ValueError: the shapes do not belong together, or `ridge` is not above 0 and finite.
    """
    # The kernels take the features' sizes for all three.
    if not (features.ndim == targets.ndim == 3 and features.shape[:2] == targets.shape[:2] == weights.shape):
        raise ValueError(
            f"a ridge regression needs features 'b n d', targets 'b n k' and weights 'b n', got "
            f"{tuple(features.shape)}, {tuple(targets.shape)} and {tuple(weights.shape)}"
        )
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge must be above 0 and finite, got {ridge}")
    readout, _, solved = torch.ops.fourd.ridge(features, targets, weights, ridge, bias)
    return Solved(readout, solved)


@torch.library.impl("fourd::ridge", "default")
def _ridge(
    features: Float[Tensor, "b n d"],
    targets: Float[Tensor, "b n k"],
    weights: Float[Tensor, "b n"],
    ridge: float,
    bias: bool,
) -> tuple[Float[Tensor, "b f k"], Float[Tensor, "b f f"], Bool[Tensor, " b"]]:
    """The readout, the Cholesky factor and what is solved."""
    with own_precision(features.device):
        if features.numel() and by_triton(features, targets, weights):
            from fourd_core.kernels.triton.ridge import normal_equations

            with torch.cuda.device_of(features):
                gram, cross = normal_equations(features, targets, weights, bias, ridge)
        else:
            gram, cross = _normal_equations(features, targets, weights, bias)
        gram.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, info = torch.linalg.cholesky_ex(gram)
        readout = _by_factor(factor, cross)
        solved = (info == 0) & readout.isfinite().all(-1).all(-1)
        return readout.where(solved[:, None, None], 0).contiguous(), factor, solved


@torch.library.register_fake("fourd::ridge")  # type: ignore[untyped-decorator]
def _(features: Tensor, targets: Tensor, weights: Tensor, ridge: float, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    b, _, d = features.shape
    f, accurate = d + bias, _accurate(features)
    readout = features.new_empty(b, f, targets.shape[2], dtype=accurate)
    factor = features.new_empty(b, f, f, dtype=accurate).mT  # as LAPACK lays its matrices out
    return readout, factor, features.new_empty(b, dtype=torch.bool)


def _normal_equations(
    features: Float[Tensor, "b n d"], targets: Float[Tensor, "b n k"], weights: Float[Tensor, "b n"], bias: bool
) -> tuple[Float[Tensor, "b f f"], Float[Tensor, "b f k"]]:
    """X'CX/N and X'CY/N by the definition."""
    accurate, n = _accurate(features), features.shape[1]
    root = weights.to(accurate).div(n).sqrt()[..., None]  # on both sides: what is rounded is still a Gram matrix
    x, y = features.to(accurate) * root, targets.to(accurate) * root
    gram, cross = x.mT @ x, x.mT @ y
    if bias:
        edge, corner = x.mT @ root, root.mT @ root
        gram = torch.cat([torch.cat([gram, edge], 2), torch.cat([edge.mT, corner], 2)], 1)
        cross = torch.cat([cross, root.mT @ y], 1)
    return gram, cross


def _by_factor(factor: Float[Tensor, "b f f"], right: Float[Tensor, "b f k"]) -> Float[Tensor, "b f k"]:
    """A^-1 times the right side; torch.cholesky_solve goes through a batch one by one on some GPUs."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.ridge, _ = inputs
    ctx.save_for_backward(*tensors, *output)


@torch.autograd.function.once_differentiable
def _backward(ctx: Any, incoming: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    features, targets, weights, readout, factor, solved = ctx.saved_tensors
    by_features, by_targets, by_weights, *_ = ctx.needs_input_grad
    known, n, d = solved[:, None, None], features.shape[1], features.shape[2]
    of_features = of_targets = of_weights = None
    with own_precision(features.device):
        z = _by_factor(factor, incoming).where(known, 0)
        if by_features:
            half = z @ readout.mT
            of_features = torch.ops.fourd.ridge_features_gradient(
                features, targets, weights, z, half + half.mT, solved, ctx.ridge
            )
        if by_targets or by_weights:
            x, y, c = (t.to(z.dtype) for t in (features, targets, weights[..., None]))
            u = _applied(z, x, d)
        # 0 * inf is not 0: a sample without a solution may hold anything.
        if by_targets:
            of_targets = (c / n * u).where(known, 0).to(targets.dtype)
        if by_weights:
            error = y - _applied(readout, x, d)
            of_weights = ((u * error).sum(-1) / n).where(solved[:, None], 0).to(weights.dtype)
    return of_features, of_targets, of_weights, None, None


torch.library.register_autograd("fourd::ridge", _backward, setup_context=_remember)


def _applied(linear: Float[Tensor, "b f k"], x: Float[Tensor, "b n d"], d: int) -> Float[Tensor, "b n k"]:
    """Each row through a linear map, whose last row is the bias where it has one row more than there are features."""
    product: Tensor = x @ linear[:, :d]
    return product if linear.shape[1] == d else product + linear[:, d:]


@torch.library.impl("fourd::ridge_features_gradient", "default")
def _features_gradient(
    features: Float[Tensor, "b n d"],
    targets: Float[Tensor, "b n k"],
    weights: Float[Tensor, "b n"],
    z: Float[Tensor, "b f k"],
    m: Float[Tensor, "b f f"],
    solved: Bool[Tensor, " b"],
    ridge: float,
) -> Float[Tensor, "b n d"]:
    """c/N (Y Z' - X~ M), laid out in memory as the features are: X~ has the column of ones if there is a bias."""
    if features.numel() and by_triton(features, targets, weights):
        from fourd_core.kernels.triton.ridge import features_gradient

        with torch.cuda.device_of(features):
            return features_gradient(features, targets, weights, z, m, solved, ridge)
    n, d = features.shape[1:]
    with own_precision(features.device):
        gradient = torch.empty_like(features, dtype=z.dtype)
        torch.bmm(targets.to(z.dtype), z[:, :d].mT, out=gradient)
        gradient.baddbmm_(features.to(z.dtype), m[:, :d, :d], alpha=-1)
        if m.shape[1] > d:
            gradient.sub_(m[:, d:, :d])
        gradient.mul_(weights[..., None].to(z.dtype) / n)
        return gradient.masked_fill_(~solved[:, None, None], 0).to(features.dtype)


@torch.library.register_fake("fourd::ridge_features_gradient")  # type: ignore[untyped-decorator]
def _(features: Tensor, *others: object) -> Tensor:
    return torch.empty_like(features)


def _accurate(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _why_unsolved(
    failed: Bool[Tensor, " b"],
    features: Float[Tensor, "b n d"],
    targets: Float[Tensor, "b n k"],
    weights: Float[Tensor, "b n"],
    dtype: torch.dtype,
) -> str:
    usable = (weights.isfinite() & (weights >= 0)).all(1)
    for rows in (features, targets):
        usable &= rows.isfinite().flatten(1).all(1)
    broken = failed & ~usable
    if broken.any():
        return (
            f"the ridge regression has no solution for sample {_numbers(broken)} of the batch: its features, targets "
            "or weights are not finite, or a weight is negative; lower the learning rate or look for a bad cue"
        )
    return (
        f"the ridge regression has no solution for sample {_numbers(failed)} of the batch: its numbers are too large "
        f"or too ill-conditioned for {str(dtype).removeprefix('torch.')}; normalise the features or raise `ridge`"
    )


def _numbers(chosen: Bool[Tensor, " b"]) -> str:
    return ", ".join(str(i) for i in chosen.nonzero().flatten().tolist())
