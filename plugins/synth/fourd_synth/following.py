"""Points followed through a clip: drawn on what is seen, carried with it, visible by a ray to each in every frame."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fourd_core.data import Tracks
from fourd_synth.draws import Draws
from fourd_synth.points import Points, moved, points_hit, seen
from fourd_synth.rendering import Window
from fourd_synth.shapes import NEAR, Vector
from fourd_synth.tracing import Rays, trace
from fourd_synth.views import Views

CANDIDATES = 6
"""Points drawn for each that is kept, so that half of them can be on what moves."""


def follow(
    views: Views, window: Window, frames: Int64[Tensor, "b t"], drawn: Int64[Tensor, "b s"], count: int, draws: Draws
) -> Tracks:
    """Points of each clip in some of its frames; `xyz` is left out.

    Args:
        frames: where they are followed.
        drawn: the frames in which they are drawn, at random pixels of the window.
        draws: one stream per clip; takes the same amount from it whatever `frames` are.
    """
    start = _drawn(views, window, drawn, count, draws)
    clips, times = frames.shape
    frame = frames + torch.arange(clips, device=frames.device)[:, None] * views.frames
    each = frame[:, :, None].expand(-1, -1, count).reshape(-1)

    def repeated(values: Tensor) -> Tensor:
        return values.view(clips, 1, count).expand(-1, times, -1).reshape(-1, 1, 1)

    points = Points(each, repeated(start.slot), Vector(*(repeated(component) for component in start.place)))
    there = seen(views, points, each)
    at = torch.stack([*there.at], -1).view(clips, times, count, 3)
    ahead = at[..., 2] > NEAR
    z = torch.where(ahead, at[..., 2], 1.0)[..., None]
    focal = (views.focal * window.pixels).view(-1, 1, 1, 1)
    xy = at[..., :2] / z * focal + (window.pixels / 2 - window.corner)[:, None, None].to(at.dtype)
    inside = ((xy >= 0) & (xy < xy.new_tensor(window.size[::-1]))).all(-1) & ahead
    hidden, sure = there.hidden.view(ahead.shape), there.sure.view(ahead.shape)
    visibility = (inside & ~hidden).to(at.dtype)
    live = ahead & (sure | ~inside)
    return Tracks(xy, visibility, live, depth=at[..., 2], xyz_camera=at, unit="m")


def _drawn(views: Views, window: Window, frames: Int64[Tensor, "b s"], count: int, draws: Draws) -> Points:
    """Points at random pixels of random frames, half of them on what moves where there are any; `b * count` of them."""
    clips, times = frames.shape
    rolls = torch.from_numpy(draws.uniform(3, CANDIDATES * count)).to(frames.device)
    chosen = frames.gather(1, (rolls[:, 0] * times).long())
    frame = (chosen + torch.arange(clips, device=frames.device)[:, None] * views.frames).flatten()
    focal = (views.focal * window.pixels)[:, None]

    def along(axis: int) -> Float[Tensor, "m 1 1"]:
        pixel = (rolls[:, 1 + axis] * window.size[1 - axis]).long() + window.corner[:, axis, None]
        return ((pixel + 0.5 - window.pixels / 2).to(focal.dtype) / focal).reshape(-1, 1, 1)

    rays = Rays(frame, along(0), along(1))
    hits = trace(views, rays)
    points = points_hit(views, rays, hits)
    moving = (moved(views, points) == 1).view(clips, -1)
    preferred = moving & (moving.cumsum(1) <= count // 2)
    usable = (hits.z < torch.inf).view(clips, -1)
    order = torch.where(preferred, 0, torch.where(usable, 1, 2)).argsort(dim=1, stable=True)
    kept = order[:, :count].sort(1).values + torch.arange(clips, device=frames.device)[:, None] * moving.shape[1]
    kept = kept.flatten()
    return Points(frame[kept], hits.slot[kept], Vector(*(component[kept] for component in points.place)))
