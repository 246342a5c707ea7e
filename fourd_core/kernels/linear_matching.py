"""The matching losses of a linear map's output, which is never held as a whole.

    prediction = readout[:d]' features + readout[d]  at every pixel,  loss = matching(prediction, target, valid)

Samples are independent but for the counts of valid numbers, which the masks give beforehand. So the prediction of some
samples (or rows of one), its gradient, and what it adds to the gradients of features and readout are made while they
are in cache. The gradients are made in the forward pass; the backward pass only scales them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.kernels.choice import by_triton
from fourd_core.kernels.gradient_matching import (
    GradientForm,
    Matching,
    Pieces,
    Terms,
    before_scaling,
    count,
    in_cache,
    matching,
    require_bool,
    require_terms,
)
from fourd_core.precision import own_precision

CHUNK_BYTES = 24 << 20
"""Size of the predictions that a GPU's second-level cache holds beside their gradients."""
BAND = 1 << 20
"""Numbers of the features that a CPU's cache holds beside predictions and gradients."""
Gradients = tuple[Tensor | None, Tensor | None]
"""Of the features and of the readout."""


def linear_matching(
    features: Float[Tensor, "b d h w"],
    readout: Float[Tensor, "b d_plus_1 k"],
    target: Float[Tensor, "b k h w"],
    valid: Bool[Tensor, "b k h w"],
    sigma: float = 0.1,
    form: GradientForm = "absolute",
    edge_weight: float = 1.0,
) -> Matching:
    """`matching` of the maps that a readout makes of features, in float32 (float64 for float64 features).

    Beside the gradients of features and readout, which are made at once, only the prediction of a few samples is held.
    They are scaled in place by the backward pass, of which there can be one.

    Args:
        readout: one linear map per sample; its last row is the bias.
    Raises:
        ValueError: the shapes do not belong together; sigma is not above 0; no such form.
        TypeError: valid is not bool.
        RuntimeError: in a second backward pass through one result.
    """
    of_each = features.shape[:1] + readout.shape[2:] + features.shape[2:]
    if not (_fit(features, readout) and target.shape == valid.shape == of_each):
        raise ValueError(
            f"features {tuple(features.shape)} 'b d h w' need a readout 'b d+1 k' and target and valid 'b k h w', got "
            f"{tuple(readout.shape)}, {tuple(target.shape)} and {tuple(valid.shape)}"
        )
    require_bool(valid)
    require_terms(sigma, form)
    whole = not (in_cache(features) or by_triton(features, readout, target, valid)) or torch.compiler.is_compiling()
    if whole or not target.numel():
        return matching(apply_readout(features, readout), target, valid, sigma, form, edge_weight)
    needed = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (features, readout))
    terms = Terms(sigma, form, edge_weight)
    return Matching(*_LinearMatching.apply(features, readout, target.detach(), valid, terms, needed))  # type: ignore[no-untyped-call]


def apply_readout(
    features: Float[Tensor, "b d h w"], readout: Float[Tensor, "b d_plus_1 k"]
) -> Float[Tensor, "b k h w"]:
    """Every pixel's features through a linear map with bias, its last row; in float32 also under autocast.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if not _fit(features, readout):
        raise ValueError(
            f"features {tuple(features.shape)} 'b d h w' need a readout 'b d+1 k', got {tuple(readout.shape)}"
        )
    accurate = torch.promote_types(features.dtype, torch.float32)
    with own_precision(features.device):
        weight, bias = readout.to(accurate).mT.split((features.shape[1], 1), dim=-1)
        prediction: Tensor = torch.baddbmm(bias, weight, features.to(accurate).flatten(2))
        return prediction.view(*prediction.shape[:2], *features.shape[2:])


def _fit(features: Tensor, readout: Tensor) -> bool:
    return features.ndim == 4 and readout.ndim == 3 and readout.shape[:2] == (features.shape[0], features.shape[1] + 1)


class _LinearMatching(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        readout: Tensor,
        target: Tensor,
        valid: Tensor,
        terms: Terms,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        walk = _by_chunks if by_triton(features, readout, target, valid) else _by_bands
        with own_precision(features.device), torch.cuda.device_of(features):
            losses, ctx.gradients = walk(features, readout, target, valid, terms, needed)
        ctx.dtypes = features.dtype, readout.dtype
        ctx.mark_non_differentiable(*losses[1:])
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "a second backward pass through linear_matching: its gradients were made in the forward pass and used "
                "up by the first one; call linear_matching again"
            )
        gradients, ctx.gradients = ctx.gradients, None
        features, readout = (
            None if gradient is None else _scaled(gradient, incoming).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return features, readout, None, None, None, None


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """In place."""
    if by_triton(gradient, factor):
        from fourd_core.kernels.triton.gradient_matching import scale_unless_one

        with torch.cuda.device_of(gradient):
            scale_unless_one(gradient, factor)
        return gradient
    return gradient if factor == 1 else gradient.mul_(factor)


def _by_bands(
    features: Tensor,
    readout: Tensor,
    target: Tensor,
    valid: Tensor,
    terms: Terms,
    needed: tuple[bool, bool],
) -> tuple[tuple[Tensor, Tensor, Tensor], Gradients]:
    """On the CPU, some rows of a sample at a time; the row below them is predicted for its neighbours' sake."""
    b, d, h, w = features.shape
    k = readout.shape[2]
    accurate, held = torch.promote_types(features.dtype, torch.float32), before_scaling(features.dtype)
    pieces = Pieces(count(valid), accurate, terms)
    rows = min(h, max(4, BAND // max(max(d, k) * w, 1)))
    predictions, pulls = torch.empty(2, k * (rows + 1) * w, dtype=accurate)
    of_features = features.new_empty(features.shape, dtype=held) if needed[0] else None
    of_readout = torch.zeros(b, k, d + 1, dtype=accurate) if needed[1] else None
    for i in range(b):
        pixels = features[i].flatten(1)
        weight, bias = readout[i].mT.to(accurate).split((d, 1), dim=1)
        pull = pulls[: k * w].view(k, 1, w).zero_()
        for y in range(0, h, rows):
            end = min(y + rows + 1, h)
            here, own = slice(y * w, end * w), min(rows, h - y) * w
            x = pixels[:, here].to(accurate)
            prediction = torch.addmm(bias, weight, x, out=predictions[: k * x.shape[1]].view(k, -1))
            prediction = prediction.view(k, -1, w)
            shared = pull[:, -1].clone()
            pull = pulls[: prediction.numel()].view_as(prediction).zero_()
            pull[:, 0] = shared
            pieces.add(
                prediction, target[i, :, y:end], valid[i, :, y:end], end - y > rows, pull if any(needed) else None
            )
            slope = pull.flatten(1)[:, :own]
            if of_features is not None:
                _product(weight.mT, slope, out=of_features[i].flatten(1)[:, here][:, :own])
            if of_readout is not None:
                of_readout[i, :, :d].addmm_(slope, x[:, :own].mT)
                of_readout[i, :, d] += slope.sum(1)
    return pieces.result(), (of_features, None if of_readout is None else of_readout.mT)


def _by_chunks(
    features: Tensor,
    readout: Tensor,
    target: Tensor,
    valid: Tensor,
    terms: Terms,
    needed: tuple[bool, bool],
) -> tuple[tuple[Tensor, Tensor, Tensor], Gradients]:
    """On a GPU, some samples at a time."""
    from fourd_core.kernels.triton.gradient_matching import Sums

    b, d, h, w = features.shape
    k = readout.shape[2]
    accurate, held = torch.promote_types(features.dtype, torch.float32), before_scaling(features.dtype)
    sums = Sums(valid, accurate, terms)
    together = max(1, CHUNK_BYTES // max(k * h * w * accurate.itemsize, 1))
    weight, bias = readout[:, :d].mT.to(accurate).contiguous(), readout[:, d].to(accurate).contiguous()
    of_features = features.new_empty(features.shape, dtype=held) if needed[0] else None
    of_readout = weight.new_empty(b, k, d + 1) if needed[1] else None
    for first in range(0, b, together):
        part = slice(first, first + together)
        x = features[part].flatten(2).to(accurate)
        prediction = torch.bmm(weight[part], x).unflatten(2, (h, w))
        slope = torch.empty_like(prediction) if any(needed) else None
        sums.add(prediction, target[part], valid[part], bias[part], slope, first * k)
        if slope is not None and of_features is not None:
            _product(weight[part].mT, slope.flatten(2), out=of_features[part].flatten(2))
        if slope is not None and of_readout is not None:
            of_readout[part, :, :d] = torch.bmm(slope.flatten(2), x.mT)
    if of_readout is not None:
        of_readout[:, :, d] = sums.of_bias().view(b, k)
    return sums.result(), (of_features, None if of_readout is None else of_readout.mT)


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Written where it is wanted; by way of a copy only if that is in another precision."""
    if out.dtype == a.dtype:
        torch.matmul(a, b, out=out)
    else:
        out.copy_(a @ b)
