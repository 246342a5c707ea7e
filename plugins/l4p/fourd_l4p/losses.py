"""What L4P minimises, each as a function of predictions, truth and what of the truth is known.

Truth where it is not known may be any number or NaN: it is exchanged before anything is computed, so that neither the
losses nor their gradients see it. Where nothing at all is known a loss is 0 and so is its gradient.
Source: Badki et al., L4P (arXiv 2502.13078), section 4.1 and supplement, section 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

FLAT = 1e-12
"""The least mean square of SILog: the root has no derivative at 0, and here no gradient below."""


def silog(
    log_depth: Float[Tensor, "b ..."],
    depth: Float[Tensor, "b ..."],
    valid: Bool[Tensor, "b ..."],
    variance_focus: float,
) -> Float[Tensor, ""]:
    """The scale-invariant logarithmic error of depth, of each clip by itself, then the mean of the clips that have one.

        d = log_depth - log(depth),   sqrt(mean(d^2) - variance_focus mean(d)^2)

    With `variance_focus = 1` a common factor of a clip's depths costs nothing, with 0 it costs all.
    Source: Eigen et al. (arXiv 1406.2283), equation 4; its root, and the name of the weight, as in Lee et al., BTS
    (arXiv 1907.10326), section 3.3.

    Args:
        depth: in any one unit; numbers that are not positive and finite are not valid.
    """
    valid = (valid & known_depth(depth)).flatten(1)
    d = log_depth.flatten(1) - depth.flatten(1).where(valid, 1.0).log()
    count = valid.sum(1)
    mean = d.where(valid, 0.0).sum(1) / count.clamp(min=1)
    # Not mean(d^2) - mean(d)^2, which are almost equal where the scale is far off.
    variance = (d - mean[:, None]).where(valid, 0.0).square().sum(1) / count.clamp(min=1)
    square = variance + (1 - variance_focus) * mean.square()
    return mean_where(square.clamp(min=FLAT).sqrt(), count > 0)


def l1(predicted: Float[Tensor, "*n c"], truth: Float[Tensor, "*n c"], valid: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """The sum of the components' absolute errors, in the mean of all valid places of the batch."""
    errors = (predicted - truth.where(valid[..., None], 0.0)).abs().sum(-1)
    return mean_where(errors, valid)


def cross_entropy(
    logit: Float[Tensor, "*n"], truth: Float[Tensor, "*n"], valid: Bool[Tensor, "*n"]
) -> Float[Tensor, ""]:
    """The binary cross entropy, in the mean of all valid places of the batch; truth is 0 or 1."""
    errors = F.binary_cross_entropy_with_logits(logit, truth.where(valid, 0.0), reduction="none")
    return mean_where(errors, valid)


def mean_where(values: Float[Tensor, "*n"], valid: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """The mean of the valid values; 0, with a gradient of 0, where there is none."""
    return values.where(valid, 0.0).sum() / valid.sum().clamp(min=1)


def known_depth(depth: Float[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Where it is a depth: positive and finite."""
    return depth.isfinite() & (depth > 0)


@torch.no_grad()
def clip_scale(
    depth: Float[Tensor, "b ..."] | None,
    track_depth: Float[Tensor, "b ..."] | None,
    centres: Float[Tensor, "b t 3"] | None,
) -> Float[Tensor, " b"]:
    """The length that each clip is measured in: what is learned of it is known up to this one unit.

    The geometric mean of its known depths (which SILog then pulls to 1); without any, of its tracks' depths; without
    these, the mean distance of its cameras from the first; and 1 where they stand still.
    """
    given = next(part for part in (depth, track_depth, centres) if part is not None)
    scale = torch.full((len(given),), torch.nan, dtype=given.dtype, device=given.device)
    for depths in (depth, track_depth):
        if depths is not None:
            known = known_depth(depths).flatten(1)
            logs = depths.flatten(1).where(known, 1.0).log().sum(1) / known.sum(1)
            scale = torch.where(scale.isfinite(), scale, logs.exp())
    if centres is not None:
        away = (centres - centres[:, :1]).norm(dim=-1).mean(1)
        scale = torch.where(scale.isfinite(), scale, away)
    return torch.where(scale.isfinite() & (scale > 0), scale, 1.0)


# What is logged beside the losses, where nothing is known 0.


@torch.no_grad()
def end_point_error(
    predicted: Float[Tensor, "*n 2"], truth: Float[Tensor, "*n 2"], valid: Bool[Tensor, "*n"]
) -> Float[Tensor, ""]:
    """The mean distance of predicted positions or flow vectors from the true ones, in pixels."""
    return mean_where((predicted - truth).norm(dim=-1), valid)


@torch.no_grad()
def relative_error(log_depth: Float[Tensor, "b ..."], depth: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """The mean relative error of depth, when each clip's is scaled to the true median ratio."""
    valid = known_depth(depth).flatten(1)
    d = (log_depth.flatten(1) - depth.flatten(1).log()).where(valid, torch.nan)
    d = d - d.nanmedian(1, keepdim=True).values
    return mean_where((d.exp() - 1).abs(), valid)


@torch.no_grad()
def intersection_over_union(
    logit: Float[Tensor, "*n"], truth: Float[Tensor, "*n"], valid: Bool[Tensor, "*n"]
) -> Float[Tensor, ""]:
    """Of what is called moving by either, the share by both, over the whole batch; 0 where nothing moves at all."""
    predicted, given = (logit > 0) & valid, (truth > 0.5) & valid
    return (predicted & given).sum() / (predicted | given).sum().clamp(min=1)


@torch.no_grad()
def accuracy(logit: Float[Tensor, "*n"], truth: Float[Tensor, "*n"], valid: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """The share of the valid places that are called rightly."""
    return mean_where(((logit > 0) == (truth > 0.5)).to(logit.dtype), valid)
