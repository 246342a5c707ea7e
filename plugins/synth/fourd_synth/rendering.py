"""A batch of clips as pictures with all that is known of their pixels, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fourd_synth.points import moved, points_hit, seen
from fourd_synth.shading import Shading, shade
from fourd_synth.shapes import NEAR
from fourd_synth.textures import TextureBank
from fourd_synth.tracing import Rays, trace
from fourd_synth.views import Views

TILE = 16
"""Pixels along a tile's side: fewer things reach a smaller tile."""
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Pixels that are worked on together: on a processor its cache is what counts."""


class Window(NamedTuple):
    """The part of each clip's picture that is made.

    Attributes:
        corner: column and row of its top left pixel.
        size: its height and width.
        pixels: the side of the whole square picture.
    """

    corner: Int64[Tensor, "b 2"]
    size: tuple[int, int]
    pixels: int


class Flow(NamedTuple):
    """Of each pixel's content: where it is in a neighbouring frame (NaN: not known), and whether it is hidden there."""

    flow: Float[Tensor, "b t 2 h w"]
    occluded: Float[Tensor, "b t 1 h w"]


class Rendered(NamedTuple):
    """A batch of clips, float32 or float64."""

    colour: Float[Tensor, "b t 3 h w"] | None
    depth: Float[Tensor, "b t 1 h w"]
    motion: Float[Tensor, "b t 1 h w"]
    slot: Int64[Tensor, "b t 1 h w"]
    flow: dict[int, Flow]
    """By direction: -1 to the frame before, 1 to the one behind."""


def render(
    views: Views,
    window: Window,
    frames: Int64[Tensor, "b t"],
    *,
    bank: TextureBank | None,
    shading: Shading = "lambert",
    directions: Sequence[int] = (-1,),
) -> Rendered:
    """Pictures and the truth about them.

    Args:
        frames: which frames of `views`, each neither the first nor the last.
        bank: None: no pictures.
    """
    frame, x, y = _tiles(views, window, frames)
    chunk = max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // TILE**2)
    parts = []
    for start in range(0, len(frame), chunk):
        part = slice(start, start + chunk)
        parts.append(_rendered(views, window, Rays(frame[part], x[part], y[part]), bank, shading, directions))
    shape = (*frames.shape, -(-window.size[0] // TILE), -(-window.size[1] // TILE))

    def assembled(maps: Sequence[Tensor]) -> Tensor:
        whole = torch.cat(list(maps), 1).unflatten(1, shape).permute(1, 2, 0, 3, 5, 4, 6)  # b t c rows y columns x
        return whole.flatten(5, 6).flatten(3, 4)[..., : window.size[0], : window.size[1]].contiguous()

    flows = {d: Flow(*(assembled([p.flow[d][i] for p in parts]) for i in (0, 1))) for d in directions}
    colour = None if bank is None else assembled([p.colour for p in parts if p.colour is not None])
    return Rendered(
        colour,
        assembled([p.depth for p in parts]),
        assembled([p.motion for p in parts]),
        assembled([p.slot for p in parts]),
        flows,
    )


def _tiles(views: Views, window: Window, frames: Int64[Tensor, "b t"]) -> Rays:
    """The rays of all tiles: clips, frames, rows of tiles, columns of tiles."""
    clips, count = frames.shape
    rows, columns = (-(-side // TILE) for side in window.size)
    inside = torch.arange(TILE, device=frames.device, dtype=views.focal.dtype) + 0.5
    focal = views.focal * window.pixels

    def along(axis: int, tiles: int) -> Float[Tensor, "b tiles side"]:
        start = torch.arange(tiles, device=frames.device) * TILE + window.corner[:, axis, None]
        return (start[..., None] + inside - window.pixels / 2) / focal[:, None, None]

    shape = (clips, count, rows, columns)
    x = along(0, columns)[:, None, None].expand(*shape, TILE).reshape(-1, 1, TILE)
    y = along(1, rows)[:, None, :, None].expand(*shape, TILE).reshape(-1, TILE, 1)
    frame = frames + torch.arange(clips, device=frames.device)[:, None] * views.frames
    return Rays(frame[:, :, None, None].expand(shape).reshape(-1), x, y)


def _rendered(
    views: Views,
    window: Window,
    rays: Rays,
    bank: TextureBank | None,
    shading: Shading,
    directions: Sequence[int],
) -> Rendered:
    """The same for some tiles: every map with its channels first."""
    hits = trace(views, rays)
    points = points_hit(views, rays, hits)
    clip = rays.frame // views.frames
    focal = (views.focal[clip] * window.pixels)[:, None, None]
    known = hits.z < torch.inf
    colour = None if bank is None else shade(views, rays, hits, points, bank, shading, 1 / focal[:, 0, 0])
    flows = {}
    for direction in directions:
        there = seen(views, points, rays.frame + direction)
        ahead = there.at.z > NEAR
        z = torch.where(ahead, there.at.z, 1.0)
        x, y = there.at.x / z, there.at.y / z
        dx, dy = (x - rays.x) * focal, (y - rays.y) * focal
        low = (window.corner[clip] - window.pixels / 2)[:, :, None, None]
        left, top = x * focal - low[:, 0], y * focal - low[:, 1]
        inside = ahead & (left >= 0) & (left < window.size[1]) & (top >= 0) & (top < window.size[0])
        told = known & (there.sure | ~inside)
        flow = torch.where(told & ahead, torch.stack([dx, dy]), torch.nan)
        occluded = torch.where(told, torch.where(inside & ~there.hidden, 0.0, 1.0), torch.nan)
        flows[direction] = Flow(flow, occluded[None].to(flow.dtype))
    depth = torch.where(known, hits.z, torch.nan)[None]
    motion = torch.where(known, moved(views, points), torch.nan)[None]
    return Rendered(colour, depth, motion, hits.slot[None], flows)
