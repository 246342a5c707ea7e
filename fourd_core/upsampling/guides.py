"""What shows where edges are: a frame's colours, beside them pixel features of a system."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourd_core.geometry import pixel_centres
from fourd_core.media.views import View
from fourd_core.upsampling.in_context import Rows

SHARE = 0.3
"""Size of all pixel features together where that of the three colours is 1. Colours alone have the sharpest edges, and
features tell an edge of a thing from one of its pattern: measured in benchmarks/upsampling.py."""


def standardised(maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """The maps with mean 0 and the same variance in every channel, 1 in all of them together; flat channels are 0."""
    centred = maps - maps.mean((-2, -1), keepdim=True)
    deviation = centred.square().mean((-2, -1), keepdim=True).sqrt()
    size = maps.abs().amax((-2, -1), keepdim=True)
    flat: Tensor = deviation <= 1e-6 * size
    ones: Tensor = (centred / deviation.where(~flat, 1)).where(~flat, 0)
    return ones / math.sqrt(maps.shape[1])


def guide(
    frames: Float[Tensor, "b 3 H W"], features: Float[Tensor, "b d H W"] | None = None, share: float = SHARE
) -> Float[Tensor, "b c H W"]:
    """Features for `upsample_in_context` from frames, and from pixel features where there are some.

    Args:
        share: size of the pixel features relative to the colours.
    """
    colours = standardised(frames)
    return colours if features is None else torch.cat([colours, share * standardised(features)], 1)


def guide_rows(frame: Float[Tensor, "1 3 H W"], features: Float[Tensor, "1 d y x"] | None, view: View) -> Rows:
    """As `guide`, a few rows of pixels at a time, with features on the grid of a view.

    Args:
        view: how the features' network saw the frame; where it shows nothing, the nearest features count.
    """
    colours = standardised(frame)
    if features is None:
        return lambda start, stop: colours[..., start:stop, :]
    deep = SHARE * standardised(features)

    def rows(start: int, stop: int) -> Float[Tensor, "1 c r W"]:
        below = deep.new_tensor([0, start])
        xy = view.to_view(pixel_centres((stop - start, view.video_size[1]), like=deep) + below)
        grid = (xy * (2 / xy.new_tensor(view.size[::-1])) - 1)[None]
        here = F.grid_sample(deep, grid, padding_mode="border", align_corners=False)
        return torch.cat([colours[..., start:stop, :], here], 1)

    return rows
