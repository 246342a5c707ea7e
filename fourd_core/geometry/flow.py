"""Along a flow, and where two opposite flows agree. Source: google-research/lila, func_utils.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sample_along(
    maps: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"], assume_square: bool = False
) -> Float[Tensor, "b c h w"]:
    """`maps` at the places where `flow` leads, bilinearly, held constant beyond the border.

    Args:
        flow: in pixels.
        assume_square: take x for a share of the height, as the reference does, which is right for square maps only.
    """
    h, w = flow.shape[-2:]
    x = torch.arange(w, device=flow.device) + flow[:, 0] * (h / w if assume_square else 1)
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]
    # A side of one pixel has no extent to normalise by, and every place in it is that pixel.
    grid = torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)


def flow_disagreement(flow: Float[Tensor, "b 2 2 h w"]) -> Float[Tensor, "b 2 1 h w"]:
    """How far from its start the way along one flow and back along the opposite one ends, in half frames.

    x is measured in half widths and y in half heights.

    Args:
        flow: in pixels: from each of two frames to the other one.
    """
    there, back = flow.flatten(0, 1), flow.flip(1).flatten(0, 1)
    distance = half_frames(there + sample_along(back, there)).norm(dim=1, keepdim=True)
    answer: Tensor = distance.unflatten(0, flow.shape[:2])
    return answer


def half_frames(flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Flow in pixels -> in half frame widths (x) and half frame heights (y)."""
    height, width = flow.shape[-2:]
    return flow * flow.new_tensor([2 / width, 2 / height])[:, None, None]
