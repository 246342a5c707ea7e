"""Scale and shift between maps of the same scene: depth against depth, or disparity against disparity.

    fit = fit_affine(safe_inverse(source), safe_inverse(target))
    aligned = aligned_in_disparity(depth, fit)

Maps are `b ...`; each entry of the batch has a fit of its own. Pairs in which a number is not finite do not count. A
batch entry in which nothing counts gets the identity.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.geometry.numerics import at_least_single, draw, wide
from fourd_core.rewrites import Rewrite

FIVE_SUMS = Rewrite(
    "scale and shift from five sums",
    saves="6.8 of 11.3 ms for 8 frames of 224 x 224 pixels on one CPU core, and a matrix of two columns.",
)

HYPOTHESES = 128
"""Pairs of points: at 50 % outliers one of them is clean but for a chance of 1e-16."""
SCORED = 1024
"""Points by which hypotheses are compared."""
ROUNDS = 10
"""Of reweighting; far more than it takes to converge from a good start."""
BISQUARE = 4.685
"""Width of Tukey's bisquare in standard deviations, for 95 % efficiency on normal errors."""


class Affine(NamedTuple):
    """`values -> scale * values + shift`, one for each entry of a batch."""

    scale: Float[Tensor, " b"]
    shift: Float[Tensor, " b"]

    def __call__(self, values: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Values of the source on the target's scale."""
        shape = (-1,) + (1,) * (values.ndim - 1)
        return self.scale.reshape(shape) * values + self.shift.reshape(shape)


def safe_inverse(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Depth of disparity, disparity of depth; 0 for values that are not above 0, and so are unknown or at infinity."""
    nothing = values <= 0
    return torch.where(nothing, 0.0, 1 / torch.where(nothing, 1.0, values))


def aligned_in_disparity(depth: Float[Tensor, "b ..."], fit: Affine) -> Float[Tensor, "b ..."]:
    """Depth after a scale and shift of its inverse; 0 where that is not above 0."""
    return safe_inverse(fit(safe_inverse(depth)))


def fit_affine(
    source: Float[Tensor, "b ..."],
    target: Float[Tensor, "b ..."],
    weights: Float[Tensor, "b ..."] | Bool[Tensor, "b ..."] | None = None,
) -> Affine:
    """The scale and shift that bring `source` to `target` with the least weighted squared error.

    A source that is the same everywhere is only shifted.

    Args:
        weights: >= 0, or a mask; none: all numbers count alike, zeros of `safe_inverse` too.
    """
    return _least_squares(*_flat(source, target, weights))


def fit_affine_robust(
    source: Float[Tensor, "b ..."],
    target: Float[Tensor, "b ..."],
    weights: Float[Tensor, "b ..."] | Bool[Tensor, "b ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Affine:
    """The scale and shift that bring most of `source` to `target`, whatever up to half of the numbers do.

    The line of least median error through many pairs of points, then least squares reweighted by Tukey's bisquare of
    the error over its median. Sources: Rousseeuw, Least median of squares regression (JASA 1984); Huber, Robust
    Statistics.

    Args:
        weights: >= 0, or a mask; none: all numbers count alike.
        generator: draws the pairs; none: a new one with seed 0.
    """
    x, y, w = _flat(source, target, weights)
    with torch.no_grad():
        fit = _least_median(x, y, w, generator)
        trust = torch.ones_like(w)
        for _ in range(ROUNDS):
            trust = _bisquare((fit(x) - y).abs(), w)
            fit = _least_squares(x, y, w * trust)
    return _least_squares(x, y, w * trust)


def fit_scale(
    source: Float[Tensor, "b ..."],
    target: Float[Tensor, "b ..."],
    weights: Float[Tensor, "b ..."] | Bool[Tensor, "b ..."] | None = None,
    by: Literal["mean", "median"] = "median",
) -> Affine:
    """The scale alone that brings `source` to `target`: the mean or median of their ratios where both are above 0.

    Args:
        weights: >= 0, or a mask; the median only asks whether they are above 0.
    """
    x, y, w = _flat(source, target, weights)
    w = w * ((x > 0) & (y > 0))
    ratio = y / torch.where(w > 0, x, 1.0)
    some = w.sum(-1) > 0
    if by == "median":
        scale = _median(ratio, w)
    else:
        total = torch.where(some, w.sum(-1, dtype=wide(w)), 1.0)
        scale = ((w * ratio).sum(-1, dtype=wide(w)) / total).to(x.dtype)
    return Affine(torch.where(some, scale, 1.0), torch.zeros_like(scale))


def _flat(
    source: Tensor, target: Tensor, weights: Tensor | None
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """The numbers in rows, and weights that are 0 where one is not finite (and there replaced)."""
    dtype = torch.promote_types(at_least_single(source), target.dtype)
    x, y = source.flatten(1).to(dtype), target.flatten(1).to(dtype)
    w = torch.ones_like(x) if weights is None else weights.flatten(1).to(dtype)
    valid = x.isfinite() & y.isfinite() & w.isfinite()
    return torch.where(valid, x, 0.0), torch.where(valid, y, 0.0), torch.where(valid, w, 0.0)


def _least_squares(x: Float[Tensor, "b n"], y: Float[Tensor, "b n"], w: Float[Tensor, "b n"]) -> Affine:
    """The 2x2 normal equations, on centred numbers so that they are diagonal; sums in float64."""
    if not FIVE_SUMS.on:  # which has no answer for a source that is the same everywhere
        root = w.to(wide(w)).sqrt()[..., None]
        rows = torch.stack([x, torch.ones_like(x)], -1)
        scale, shift = torch.linalg.lstsq(root * rows, root * y[..., None]).solution[..., 0].unbind(-1)
        return Affine(scale.to(x.dtype), shift.to(x.dtype))
    total = w.sum(-1, dtype=wide(w))
    total = torch.where(total > 0, total, 1.0)
    x_mean, y_mean = ((w * values).sum(-1, dtype=wide(w)) / total for values in (x, y))
    dx, dy = x - x_mean[:, None].to(x.dtype), y - y_mean[:, None].to(y.dtype)
    variance = (w * dx * dx).sum(-1, dtype=wide(w)) / total
    covariance = (w * dx * dy).sum(-1, dtype=wide(w)) / total
    spread = variance > (16 * torch.finfo(x.dtype).eps) ** 2 * x_mean.square()
    scale = torch.where(spread, covariance, 1.0) / torch.where(spread, variance, 1.0)
    return Affine(scale.to(x.dtype), (y_mean - scale * x_mean).to(x.dtype))


def _least_median(
    x: Float[Tensor, "b n"], y: Float[Tensor, "b n"], w: Float[Tensor, "b n"], generator: torch.Generator | None
) -> Affine:
    generator = generator or torch.Generator().manual_seed(0)
    pairs = draw(w > 0, (HYPOTHESES, 2), generator).flatten(1)
    scored = draw(w > 0, (1, min(SCORED, x.shape[1])), generator)[:, 0]
    (x1, x2), (y1, y2) = (values.gather(1, pairs).unflatten(1, (-1, 2)).unbind(-1) for values in (x, y))
    scale = (y2 - y1) / (x2 - x1)
    shift = y1 - scale * x1
    error = scale[..., None] * x.gather(1, scored)[:, None] + shift[..., None] - y.gather(1, scored)[:, None]
    best = error.abs().median(-1).values.nan_to_num(torch.inf).argmin(-1, keepdim=True)
    fit = Affine(scale.gather(1, best)[:, 0], shift.gather(1, best)[:, 0])
    usable = fit.scale.isfinite() & fit.shift.isfinite()
    plain = _least_squares(x, y, w)
    return Affine(torch.where(usable, fit.scale, plain.scale), torch.where(usable, fit.shift, plain.shift))


def _bisquare(error: Float[Tensor, "b n"], w: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Tukey's weights; the standard deviation is estimated by 1.4826 times the median."""
    deviation = (1.4826 * _median(error, w)).clamp(min=torch.finfo(error.dtype).tiny)
    return (1 - (error / (BISQUARE * deviation[:, None])).square()).clamp(min=0).square()


def _median(values: Float[Tensor, "b n"], w: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """The lower median of the entries with a weight; 0 where there are none."""
    return torch.where(w > 0, values, torch.nan).nanmedian(-1).values.nan_to_num(0.0)
