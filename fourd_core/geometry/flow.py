"""Where two opposite flows agree. Source: google-research/lila, func_utils.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def flow_disagreement(flow: Float[Tensor, "b 2 2 h w"]) -> Float[Tensor, "b 2 1 h w"]:
    """How far from its start the way along one flow and back along the opposite one ends, in half frames.

    The opposite flow is read where the first one leads, bilinearly, held constant beyond the border; x is measured in
    half widths and y in half heights.

    Args:
        flow: in pixels: from each of two frames to the other one.
    """
    b, _, _, h, w = flow.shape
    there, back = flow.flatten(0, 1), flow.flip(1).flatten(0, 1)
    x = torch.arange(w, device=flow.device) + there[:, 0]
    y = torch.arange(h, device=flow.device)[:, None] + there[:, 1]
    # A side of one pixel has no extent to normalise by, and every place in it is that pixel.
    grid = torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], dim=-1)
    found = F.grid_sample(back, grid, mode="bilinear", padding_mode="border", align_corners=True)
    half = flow.new_tensor([2 / w, 2 / h])[:, None, None]
    distance: Tensor = ((there + found) * half).norm(dim=1, keepdim=True).unflatten(0, (b, 2))
    return distance
