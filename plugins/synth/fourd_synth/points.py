"""Points on surfaces, seen in one frame and carried to others: flow, visibility, what moves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fourd_synth.shapes import NEAR, Vector
from fourd_synth.tracing import BACKGROUND, Hits, Rays, trace
from fourd_synth.views import LEAST_MOTION, Views

EXACT = 1e-4
"""A hit within this share of a point's distance is the point itself."""
DOUBTFUL = 2e-3
"""One farther off, but within this share, lies at a contact or on a surface seen at a grazing angle."""


class Points(NamedTuple):
    """Points of surfaces.

    Attributes:
        frame: the frame (clip * frames + frame) in which each tile of points is looked at.
        slot: on which thing.
        place: where on it (canonical).
    """

    frame: Int64[Tensor, " t"]
    slot: Int64[Tensor, "t h w"]
    place: Vector

    def row(self, views: Views, frame: Int64[Tensor, " t"]) -> Int64[Tensor, "t h w"]:
        """Rows of the tables for these things in other frames of their clips."""
        return (frame * views.counts.things)[:, None, None] + self.slot

    def thing(self, views: Views) -> Int64[Tensor, "t h w"]:
        """Rows of the tables of things."""
        return (self.frame // views.frames * views.counts.things)[:, None, None] + self.slot


class Seen(NamedTuple):
    """Points in a frame: their camera coordinates, whether something hides them, whether that is sure."""

    at: Vector
    hidden: Bool[Tensor, "t h w"]
    sure: Bool[Tensor, "t h w"]


def points_hit(views: Views, rays: Rays, hits: Hits) -> Points:
    """The points that rays hit."""
    row = (rays.frame * views.counts.things)[:, None, None] + hits.slot
    m = columns(views.from_camera, row)
    z = hits.z
    x, y = rays.x * z, rays.y * z
    place = [m[i] * x + m[i + 1] * y + m[i + 2] * z + m[9 + i // 3] for i in (0, 3, 6)]
    return Points(rays.frame, hits.slot, Vector(*place))


def columns(table: Float[Tensor, "k rows"], row: Int64[Tensor, "t h w"]) -> Float[Tensor, "k t h w"]:
    """The columns of a table for each pixel."""
    return table.index_select(1, row.flatten()).unflatten(1, row.shape)


def carried(matrix: Float[Tensor, "12 ..."], place: Vector) -> Vector:
    """Points under affine maps, given as 9 + 3 numbers."""
    x, y, z = place
    return Vector(*(matrix[i] * x + matrix[i + 1] * y + matrix[i + 2] * z + matrix[9 + i // 3] for i in (0, 3, 6)))


def in_camera(views: Views, points: Points, frame: Int64[Tensor, " t"]) -> Vector:
    """Points in the camera of other frames of their clips."""
    return carried(columns(views.to_camera, points.row(views, frame)), points.place)


def seen(views: Views, points: Points, frame: Int64[Tensor, " t"]) -> Seen:
    """Points in other frames of their clips, and by a ray to each whether something is before it there."""
    at = in_camera(views, points, frame)
    ahead = at.z > NEAR
    z = torch.where(ahead, at.z, 1.0)
    rays = Rays(frame, torch.where(ahead, at.x / z, 0.0), torch.where(ahead, at.y / z, 0.0))
    # Seen from inside, a room, a dome and a plane hide nothing of themselves.
    rear = points.slot < BACKGROUND
    hits = trace(views, rays, Hits(torch.where(rear, z, torch.inf), points.slot))
    gap = hits.z / z - 1  # negative: something is before the point
    own = hits.slot == points.slot
    hidden = gap < -EXACT
    near = (gap.abs() < DOUBTFUL) & (own | (gap > -10 * EXACT))
    return Seen(at, hidden & ahead, ahead & (((gap.abs() <= EXACT) & own) | (hidden & ~near)))


def moved(views: Views, points: Points) -> Float[Tensor, "t h w"]:
    """1 where a point moves in the world to the frame before or after, 0 where it rests, NaN where it hardly moves."""
    motion = torch.zeros_like(points.place.x)
    which = views.moving[points.thing(views)].nonzero(as_tuple=True)
    if not len(which[0]):
        return motion
    place = Vector(*(component[which] for component in points.place))
    row = points.row(views, points.frame)[which]
    things = views.counts.things
    here = carried(views.to_world[:, row], place)
    farthest = torch.zeros_like(here.x)
    for step in (-things, things):
        there = carried(views.to_world[:, row + step], place)
        way = here.plus(torch.tensor(-1.0, dtype=here.x.dtype, device=here.x.device), there)
        farthest = torch.maximum(farthest, way.dot(way).sqrt())
    unsure = torch.where(farthest > 0, torch.nan, farthest)
    motion[which] = torch.where(farthest >= LEAST_MOTION, 1.0, unsure)
    return motion
