"""PAMR with all neighbours side by side. Source: Araslanov and Roth, Single-Stage Semantic Segmentation from Image
Labels, section 3.2; visinf/1-stage-wseg, models/mods/pamr.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LILA_STAGES = ((20, (56, 56)), (10, (112, 112)), (5, None))
"""Rounds and size; None is the guide's."""


@torch.no_grad()
def refined(
    maps: Float[Tensor, "b c h w"],
    guide: Float[Tensor, "b k h w"],
    iterations: int,
    dilations: Sequence[int] = (1, 3, 5),
    sigma: float = 0.05,
    eps: float = 1e-5,
) -> Float[Tensor, "b c h w"]:
    """Rounds of averaging with the weights of the guide."""
    contrast = (_neighbours(guide, dilations, centre=False) - guide[:, :, None]).abs()
    deviation = _neighbours(guide, dilations, centre=True).std(2, keepdim=True)
    weights = (-contrast / (eps + sigma * deviation)).mean(1, keepdim=True).softmax(2)
    for _ in range(iterations):
        maps = (_neighbours(maps, dilations, centre=False) * weights).sum(2)
    return maps


@torch.no_grad()
def scheduled(maps: Float[Tensor, "b c y x"], guide: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c h w"]:
    """LILA's stages, coarse to fine."""
    for iterations, size in LILA_STAGES:
        size = size or guide.shape[-2:]
        small, maps = (
            x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=True)
            for x in (guide, maps)
        )
        maps = refined(maps, small, iterations)
    return maps


def _neighbours(maps: Tensor, dilations: Sequence[int], centre: bool) -> Tensor:
    """`b c n h w`: the eight places around, at each dilation, and the place itself if asked."""
    h, w = maps.shape[-2:]
    parts = []
    for d in dilations:
        padded = F.pad(maps, (d,) * 4, mode="replicate")
        places = [(y, x) for y in (0, d, 2 * d) for x in (0, d, 2 * d) if centre or (y, x) != (d, d)]
        parts += [padded[..., y : y + h, x : x + w] for y, x in places]
    return torch.stack(parts, 2)
