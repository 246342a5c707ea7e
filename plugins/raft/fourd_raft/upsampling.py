"""From one place per 8 x 8 pixels to pixels. Source: RAFT (arXiv 2003.12039), section 3.3 and its core/raft.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

STRIDE = 8
"""Pixels of a frame to one place of its features, along each side."""


def convex(maps: Float[Tensor, "b c h w"], weights: Float[Tensor, "b 576 h w"]) -> Float[Tensor, "b c h8 w8"]:
    """Each pixel as a convex mixture of the 3 x 3 places around its own, which beyond the border are zero.

    Args:
        weights: before the softmax over the nine places; channel `64 k + 8 v + u` is that of place k (row-major) for
            the pixel in row v and column u.
    """
    b, _, h, w = maps.shape
    shares = weights.view(b, 9, STRIDE, STRIDE, h, w).softmax(dim=1)
    around = F.unfold(maps, 3, padding=1).view(b, -1, 9, h, w)
    return torch.einsum("bkvuhw,bckhw->bchvwu", shares, around).flatten(4, 5).flatten(2, 3)


def bilinear(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h8 w8"]:
    """Bilinear with the corners' centres aligned, as RAFT's small network does."""
    h, w = maps.shape[-2:]
    return F.interpolate(maps, (STRIDE * h, STRIDE * w), mode="bilinear", align_corners=True)
