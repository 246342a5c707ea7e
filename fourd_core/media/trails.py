"""Tracked points on a picture: filled where they are seen, hollow where they are hidden, each with a fading trail."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

TRAIL = 16
"""Frames that a trail reaches back."""

Cover = Callable[[Tensor], Tensor]
"""How much of a pixel a mark covers, by the distance of the pixel from the mark's middle."""


def point_colours(height: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """A colour in [0, 1] for each point: hues from red over green to violet, in the order of a number of each."""
    order = height.argsort(stable=True).argsort().to(height)
    hue = order / max(len(height) - 1, 1) * 0.8  # all around, the last would be red as the first
    corner = (hue[:, None] * 6 + hue.new_tensor([0.0, 4.0, 2.0])) % 6
    return ((corner - 3).abs() - 1).clamp(0, 1)


def draw_tracks(
    picture: UInt8[Tensor, "3 h w"],
    xy: Float[Tensor, "past n 2"],
    seen: Bool[Tensor, "past n"],
    colours: Float[Tensor, "n 3"],
) -> UInt8[Tensor, "3 h w"]:
    """Points of a frame and their way there.

    Args:
        xy: positions in pixels of the picture, in this frame (last) and up to `TRAIL` frames before it; NaN: none.
        seen: which of them are visible. A trail leads through frames in which its point was.
        colours: in [0, 1].
    """
    h, w = picture.shape[-2:]
    canvas = picture.float() / 255
    known = xy.isfinite().all(-1)
    canvas = _trails(canvas, xy, seen & known, colours)
    # Thousands of points get smaller ones, so that something can be seen between them.
    radius = max(min(0.3 * math.sqrt(h * w / max(xy.shape[1], 1)), max(h, w) / 130), 1.2)
    filled, hollow = known[-1] & seen[-1], known[-1] & ~seen[-1]
    canvas = _marked(canvas, xy[-1][hollow], colours[hollow], 0.7, radius, lambda d: 1 - (d - radius).abs())
    canvas = _marked(canvas, xy[-1][filled], colours[filled], 1.0, radius, lambda d: radius + 0.5 - d)
    return (canvas * 255).round().to(torch.uint8)


def _trails(
    canvas: Float[Tensor, "3 h w"],
    xy: Float[Tensor, "past n 2"],
    seen: Bool[Tensor, "past n"],
    colours: Float[Tensor, "n 3"],
) -> Float[Tensor, "3 h w"]:
    drawn = seen[1:] & seen[:-1]
    if not drawn.any():
        return canvas
    age = torch.arange(len(drawn) - 1, -1, -1, device=xy.device)
    strength = (0.8 * (1 - age / TRAIL))[:, None].expand(drawn.shape)[drawn]
    start, step = xy[:-1][drawn], xy.diff(dim=0)[drawn]
    count = step.abs().amax(-1).ceil().clamp(1, sum(canvas.shape[1:])).long()
    line = torch.arange(len(count), device=xy.device).repeat_interleave(count)
    number = torch.arange(len(line), device=xy.device) - (count.cumsum(0) - count)[line]
    along = start[line] + step[line] * ((number + 0.5) / count[line])[:, None]
    colour = colours.expand(*drawn.shape, 3)[drawn][line]
    return _marked(canvas, along, colour, strength[line], 0.5, lambda d: 1.2 - d)


def _marked(
    canvas: Float[Tensor, "3 h w"],
    xy: Float[Tensor, "m 2"],
    colours: Float[Tensor, "m 3"],
    strength: Float[Tensor, " m"] | float,
    radius: float,
    cover: Cover,
) -> Float[Tensor, "3 h w"]:
    """The canvas with marks; of those that share a pixel, the one that covers it most is seen."""
    h, w = canvas.shape[-2:]
    inside = ((xy > -radius) & (xy < xy.new_tensor([w + radius, h + radius]))).all(-1)
    xy, colours = xy[inside], colours[inside]
    if not len(xy):
        return canvas
    share = strength[inside] if isinstance(strength, Tensor) else xy.new_full((len(xy),), strength)
    reach = math.ceil(radius)
    offset = torch.arange(-reach, reach + 1, device=xy.device)
    pixel = xy.floor().long()[:, None] + torch.cartesian_prod(offset, offset)
    covered = cover((pixel + 0.5 - xy[:, None]).norm(dim=-1)).clamp(0, 1) * share[:, None]
    column, row = pixel.unbind(-1)
    covered = covered.where((column >= 0) & (column < w) & (row >= 0) & (row < h), 0.0)
    place = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
    rank = (covered * 1023).round().long() * len(xy) + torch.arange(len(xy), device=xy.device)[:, None]
    best = rank.new_zeros(h * w).scatter_reduce(0, place.flatten(), rank.flatten(), "amax")
    weight = (best // len(xy)).to(canvas) / 1023
    return torch.lerp(canvas, colours[best % len(xy)].T.reshape(3, h, w).to(canvas), weight.reshape(h, w))
