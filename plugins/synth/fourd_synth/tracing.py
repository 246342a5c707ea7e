"""What rays from the cameras hit first: rays come in tiles, and each tile is tried against the things that reach it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fourd_synth import shapes
from fourd_synth.shapes import Vector
from fourd_synth.views import Views

BACKGROUND = 2
"""Slots of the room or dome and the ground."""
MARGIN = 1e-4
"""By how much a thing's rectangle is enlarged, in x / z, so that rounding loses no hit at its edge."""


class Rays(NamedTuple):
    """Tiles of rays (x, y, 1) * z through the pinholes of some frames."""

    frame: Int64[Tensor, " t"]
    """The frame (clip * frames + frame) of each tile."""
    x: Float[Tensor, "t _ w"]
    y: Float[Tensor, "t h _"]


class Hits(NamedTuple):
    """What each ray meets first."""

    z: Float[Tensor, "t h w"]
    """Along the optical axis; infinite where there is nothing."""
    slot: Int64[Tensor, "t h w"]


def trace(views: Views, rays: Rays, behind: Hits | None = None) -> Hits:
    """The nearest thing along each ray.

    Args:
        behind: hits with the background that are known already, infinite where there are none; where a tile has
            nothing else, the background is not asked.
    """
    frame, x, y = rays
    things = views.counts.things
    shape = torch.broadcast_shapes(x.shape, y.shape)
    near = _reached(views, rays)
    if behind is None:
        z, slot = x.new_full(shape, torch.inf), torch.zeros(shape, dtype=torch.int64, device=x.device)
    else:
        z, slot = (values.clone() for values in behind)
        near[:, :BACKGROUND] &= (z == torch.inf).flatten(1).any(1, keepdim=True)
    room = views.room[frame]

    def meet(candidates: Bool[Tensor, "t n"], first: int, shape: Callable[..., Tensor], outline: bool = False) -> None:
        """Try the marked things of one shape; those of a slot are in different tiles, so they are taken together."""
        own, tile = candidates.T.nonzero(as_tuple=True)
        if not len(tile):
            return
        row = frame[tile] * things + own + first
        table = views.from_camera[:, row, None, None]
        o = Vector(*table[9:])
        a, b = x[tile], y[tile]
        d = Vector(*(table[i] * a + (table[i + 1] * b + table[i + 2]) for i in (0, 3, 6)))
        if outline:
            thing = frame[tile] // views.frames * things + own + first
            s = shape(o, d, tuple(views.outline[:, thing, None, None]))
        else:
            s = shape(o, d)
        start = 0
        for number, count in enumerate(candidates.sum(0).tolist()):
            part, to = s[start : start + count], tile[start : start + count]
            if count:
                before = z[to]
                z[to] = torch.minimum(before, part)
                slot[to] = torch.where(part < before, first + number, slot[to])
            start += count

    meet(near[:, :1] & room[:, None], 0, shapes.room)
    meet(near[:, :1] & ~room[:, None], 0, shapes.dome)
    meet(near[:, 1:2], 1, shapes.plane)
    ellipsoids, boxes, cylinders, cutouts = views.counts.slots()
    meet(near[:, ellipsoids], ellipsoids.start, shapes.ellipsoid)
    meet(near[:, boxes], boxes.start, shapes.box)
    meet(near[:, cylinders], cylinders.start, shapes.cylinder)
    meet(near[:, cutouts], cutouts.start, shapes.cutout, outline=True)
    return Hits(z, slot)


def _reached(views: Views, rays: Rays) -> Bool[Tensor, "t n"]:
    """Which things' rectangles overlap with that of each tile's rays; the background's always do."""
    left, right, top, bottom, _ = views.bounds[:, rays.frame]
    x, y = rays.x.flatten(1), rays.y.flatten(1)
    reached = (left - MARGIN <= x.amax(1, keepdim=True)) & (right + MARGIN >= x.amin(1, keepdim=True))
    reached &= (top - MARGIN <= y.amax(1, keepdim=True)) & (bottom + MARGIN >= y.amin(1, keepdim=True))
    reached[:, :BACKGROUND] = left[:, :BACKGROUND] < torch.inf
    return reached
