"""Angles between surface normals: the loss of a probe and the numbers of a set.

Source: google-research/lila, lila/metrics.py NormalsEval and losses, after probe3d.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

THRESHOLDS = (11.25, 22.5, 30.0)
"""Degrees below which a pixel counts for delta1, delta2, delta3."""
MARGIN = 1e-4
"""How far the cosine keeps from -1 and 1 in the loss: the angle's gradient is infinite there."""


def angular_loss(
    predicted: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"], valid: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, ""]:
    """The mean angle over valid pixels, in radians; 0 where none is valid. Lengths do not matter."""
    cosine = F.cosine_similarity(predicted, truth, dim=1)
    angle = torch.acos(cosine.clamp(-1 + MARGIN, 1 - MARGIN))[valid[:, 0]]
    return angle.mean() if len(angle) else (predicted * 0).sum()


@attrs.frozen(eq=False)
class NormalErrors:
    """Errors of single pictures; a picture without a valid pixel has 0 everywhere.

    Attributes:
        rmse: degrees.
        shares: of valid pixels below 11.25, 22.5 and 30 degrees (strictly).
    """

    rmse: Float[Tensor, " b"]
    shares: Float[Tensor, "b 3"]


def normal_errors(
    predicted: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"], valid: Bool[Tensor, "b 1 h w"]
) -> NormalErrors:
    """Errors per picture, over its valid pixels. A set's number is the mean over its pictures."""
    cosine = F.cosine_similarity(predicted, truth, dim=1)
    error = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
    known = valid[:, 0]
    count = known.sum((1, 2)).clamp(min=1)
    rmse = ((error.square() * known).sum((1, 2)) / count).sqrt()
    shares = [((error < threshold) & known).sum((1, 2)) / count for threshold in THRESHOLDS]
    return NormalErrors(rmse, torch.stack(shares, 1))
