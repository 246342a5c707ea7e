"""Cue maps: what teachers say about a pair of frames, brought to one form that is nearly the same in both.

Frame 0 of a pair is the query, frame 1 the context. A linear read-out that is solved on one and applied to the other
needs maps that belong to the scene point: the flow of the context is negated (a point moves on as it came), disparity
becomes depth. Which frame is earlier does not matter: that would change the sign of both flow maps, which neither the
ridge regression nor an L1 loss sees. Source: LILA paper, tri-modal cue maps; google-research/lila, dpt_lila.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.data import CueMaps
from fourd_core.geometry.flow import flow_disagreement, half_frames
from fourd_core.precision import at_least_float32
from fourd_lila.crops import cut_maps

DISPARITY_SCALE, DISPARITY_OFFSET, FARTHEST = 0.01, 0.1, 0.9
SMALLEST_SHARE = 1e-6
"""A pixel of a view of which the teacher knows less than this is unknown."""


@attrs.frozen(eq=False)
class PairCue:
    """One teacher's maps of a batch of pairs.

    Attributes:
        values: query and context.
        valid: 1 where the numbers can be trusted, else 0 (fractions once it is cut or pooled).
        known: 1 where the teacher gave a number at all, trusted or not, else 0 (fractions once it is cut).
        is_flow: the channels are x and y displacements in half frames.
    """

    values: Float[Tensor, "b 2 c h w"]
    valid: Float[Tensor, "b 2 1 h w"]
    known: Float[Tensor, "b 2 1 h w"]
    is_flow: bool = False


def pair_cue(maps: CueMaps, temperature: float = 0.05) -> PairCue:
    """A teacher's answer for clips of (query, context) as scene cues with their confidence.

    In float32 (float64 for float64 maps).

    Args:
        temperature: how strictly forward and backward flow must agree, see `agreement`.
    """
    values = at_least_float32(maps.values)
    known = torch.ones_like(values[:, :, :1], dtype=torch.bool) if maps.valid is None else maps.valid
    values = torch.where(known, values, 0)  # what a teacher leaves where it knows nothing may be NaN
    valid = known
    if maps.kind == "flow":
        error = flow_disagreement(values) if maps.disagreement is None else at_least_float32(maps.disagreement)
        there, back = half_frames(values.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        values, valid = torch.stack([there, -back], dim=1), valid & agreement(error, temperature)
    elif maps.kind == "disparity":
        values, trusted = depth_from_disparity(values)
        valid = valid & trusted
    return PairCue(values, valid.to(values), known.to(values), is_flow=maps.kind == "flow")


def agreement(error: Float[Tensor, "*shape"], temperature: float = 0.05) -> Bool[Tensor, "*shape"]:
    """Where flow can be trusted: exp(-error / temperature) > 0.5, so 3.9 px of a 224 px frame at 0.05.

    Args:
        error: how far opposite flows disagree, in half frames.
    Source: google-research/lila, func_utils.py.
    """
    return torch.exp(-error / temperature) > 0.5


def depth_from_disparity(
    disparity: Float[Tensor, "*shape"],
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """Relative depth on a logarithmic scale, 0 (near) to 1 (disparity 0), and where it is near enough to be trusted."""
    inverse = 1 / (DISPARITY_SCALE * disparity + DISPARITY_OFFSET)
    depth = torch.log(1 + inverse) / math.log(1 + 1 / DISPARITY_OFFSET)
    return depth, depth < FARTHEST


def cut_cue(cue: PairCue, theta: Float[Tensor, "b 2 2 3"], size: int, correct_flow: bool = False) -> PairCue:
    """The cue of whole frames in the two views; places that the teacher does not know are not mixed into others.

    Args:
        correct_flow: express flow in half *views*, so that a mirrored view mirrors it and a small crop enlarges it.
            The reference leaves it in half frames: then the same point has the same value in both views.
    """
    maps = torch.cat([cue.values * cue.known, cue.valid, cue.known, torch.ones_like(cue.known)], dim=2)
    cut = cut_maps(maps.flatten(0, 1), theta.flatten(0, 1), size).unflatten(0, (-1, 2))
    values, valid, known, inside = cut.split([cue.values.shape[2], 1, 1, 1], dim=2)
    values = values * (inside / known.clamp(min=SMALLEST_SHARE))  # `inside`: zeros beyond the frame are the reference's
    valid = torch.where(known < SMALLEST_SHARE, 0, valid)
    if correct_flow and cue.is_flow:
        values = values / theta.diagonal(dim1=-2, dim2=-1)[..., None, None]
    return PairCue(values, valid, known, cue.is_flow)


def standardise(values: Float[Tensor, "b 2 c h w"]) -> Float[Tensor, "b 2 c h w"]:
    """Zero mean and unit deviation by one scalar each, over the whole batch, both frames and all channels."""
    return (values - values.mean()) / (1e-3 + values.std())


def stack_cues(
    cues: Sequence[PairCue], features: Float[Tensor, "b 2 c h w"] | None = None
) -> Float[Tensor, "b 2 k h w"]:
    """One map of all cues: the teachers' standardised, then the encoder's features with unit length per pixel."""
    maps = [standardise(cue.values) for cue in cues]
    if features is not None:
        maps.append(F.normalize(features, dim=2, eps=1e-12))
    return torch.cat(maps, dim=2)
