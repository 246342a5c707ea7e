"""Where two opposite flows agree. Source: google-research/lila, func_utils.py; flows are in half frames (`cues.py`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def sample_along(
    maps: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"], assume_square: bool = False
) -> Float[Tensor, "b c h w"]:
    """`maps` at the places where `flow` points, bilinearly, held constant beyond the border.

    Args:
        flow: half frame widths (x) and heights (y).
        assume_square: scale x by half the height as the reference does, which is right only for square maps.
    """
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device) + flow[:, 0] * ((height if assume_square else width) / 2)
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1] * (height / 2)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)


def disagreement(flow: Float[Tensor, "b 2 2 h w"], assume_square: bool = False) -> Float[Tensor, "b 2 1 h w"]:
    """How far from its start the way along a flow and back along the opposite one ends, in half frames.

    Args:
        flow: of both frames of a pair, each to the other, in half frames.
    """
    there, back = flow.flatten(0, 1), flow.flip(1).flatten(0, 1)
    error: Tensor = (there + sample_along(back, there, assume_square)).norm(dim=1, keepdim=True)
    return error.unflatten(0, flow.shape[:2])


def agreement(error: Float[Tensor, "*shape"], temperature: float = 0.05) -> Bool[Tensor, "*shape"]:
    """Where flow can be trusted: exp(-error / temperature) > 0.5, so 3.9 px of a 224 px frame at 0.05."""
    return torch.exp(-error / temperature) > 0.5
