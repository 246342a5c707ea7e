"""From low-resolution maps to numbers: the expected position, and the mean over all pixels of the enlarged map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def expected_position(heat: Float[Tensor, "n t y x"], size: tuple[int, int]) -> Float[Tensor, "n t 2"]:
    """The mean of the pixel centres (x, y) under the softmax of the map, enlarged bilinearly to `size` pixels.

    Source: Badki et al., L4P (arXiv 2502.13078), section 3.3.1: a soft argmax of each frame's heat map.
    """
    height, width = size
    # Time needs no interpolation: the map has a slice for each frame.
    enlarged = F.interpolate(heat, size=size, mode="bilinear", align_corners=False)
    likely = enlarged.flatten(2).softmax(-1).unflatten(-1, size)
    # Sums of products, not matrix products: autocast would round those to its own precision.
    x = (likely.sum(-2) * (torch.arange(width, device=heat.device) + 0.5)).sum(-1)
    y = (likely.sum(-1) * (torch.arange(height, device=heat.device) + 0.5)).sum(-1)
    return torch.stack([x, y], -1)


def enlarged_mean(maps: Float[Tensor, "n m t y x"], size: tuple[int, int]) -> Float[Tensor, "n m t"]:
    """The mean of each map enlarged bilinearly to `size` pixels, without enlarging it."""
    rows, columns = (_shares(maps, *pair) for pair in zip(maps.shape[-2:], size, strict=True))
    return ((maps * columns).sum(-1) * rows).sum(-1)


def _shares(like: Tensor, length: int, enlarged: int) -> Float[Tensor, " length"]:
    """Of the sum over an enlarged axis, what each place of the small axis gets; uneven for most sizes."""
    places = torch.eye(length, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(places, size=enlarged, mode="linear", align_corners=False)[0].mean(-1)
