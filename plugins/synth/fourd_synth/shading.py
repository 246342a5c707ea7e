"""What colour a point of a surface has in a frame: texture, light, gloss."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fourd_synth.points import Points, columns
from fourd_synth.shapes import Vector
from fourd_synth.textures import TextureBank
from fourd_synth.tracing import Hits, Rays
from fourd_synth.views import Views

Shading = Literal["plain", "lambert", "glossy"]


def shade(
    views: Views,
    rays: Rays,
    hits: Hits,
    points: Points,
    bank: TextureBank,
    shading: Shading,
    pixel: Float[Tensor, " t"],
) -> Float[Tensor, "3 t h w"]:
    """Colours in [0, 1].

    Args:
        pixel: the size of a pixel at z = 1, by tile.
    """
    surface = columns(views.surface, points.thing(views))
    canonical = _normal(views, points)
    normal, towards = _in_camera(views, points, canonical), _towards_camera(rays, hits)
    facing = normal.dot(towards)
    colour = _texture(views, surface, points, canonical, hits.z * pixel[:, None, None], facing.abs(), bank)
    colour = colour * surface[6:9]
    if shading == "plain":
        return colour.clamp(0, 1)
    side = torch.where(facing < 0, -1.0, 1.0).to(facing.dtype)
    light = Vector(*(views.light[i, rays.frame][:, None, None] for i in range(3)))
    to_light = _unit(Vector(light.x - rays.x * hits.z, light.y - rays.y * hits.z, light.z - hits.z))
    ambient = views.ambient[rays.frame // views.frames][:, None, None]
    lit = (normal.dot(to_light) * side).clamp_min(0)
    colour = colour * (ambient + (1 - ambient) * 1.3 * lit)
    if shading == "glossy":
        half = _unit(to_light.plus(torch.ones_like(lit), towards))
        shine = (normal.dot(half) * side).clamp_min(0) * (lit > 0)
        for _ in range(5):
            shine = shine * shine
        colour = colour + 0.5 * surface[9] * shine * (1 - ambient)
    return colour.clamp(0, 1)


def _texture(
    views: Views,
    surface: Float[Tensor, "k t h w"],
    points: Points,
    normal: Vector,
    footprint: Float[Tensor, "t h w"],
    facing: Float[Tensor, "t h w"],
    bank: TextureBank,
) -> Float[Tensor, "3 t h w"]:
    """Textures laid on along the canonical axis that the normal is closest to, at a constant density in metres."""
    x, y, z = (place * density for place, density in zip(points.place, surface[:3], strict=True))
    a, b, c = (component.abs() for component in normal)
    along_x, along_z = (a >= b) & (a >= c), (c > a) & (c >= b)
    u = torch.where(along_x, y, x) + surface[4]
    v = torch.where(along_z, y, z) + surface[5]
    size = footprint * surface[3] / facing.clamp_min(0.15).sqrt()
    return bank.colours(views.texture[points.thing(views)], u, v, size)


def _normal(views: Views, points: Points) -> Vector:
    """Canonical normals; which way they point along their line is not told."""
    x, y, z = points.place
    slot = points.slot
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    _, boxes, cylinders, cutouts = views.counts.slots()
    room = views.room[points.frame][:, None, None]
    cubic = ((slot == 0) & room) | ((slot >= boxes.start) & (slot < boxes.stop))
    flat = (slot == 1) | (slot >= cutouts.start)
    tube = (slot >= cylinders.start) & (slot < cylinders.stop)
    a, b, c = x.abs(), y.abs(), z.abs()
    on_x, on_y = cubic & (a >= b) & (a >= c), cubic & (b > a) & (b >= c)
    on_z = flat | (cubic & ~on_x & ~on_y) | (tube & (c * c >= x * x + y * y))
    sides = on_x | on_y | on_z
    return Vector(
        torch.where(sides, torch.where(on_x, one, zero), x),
        torch.where(sides, torch.where(on_y, one, zero), y),
        torch.where(sides, torch.where(on_z, one, zero), torch.where(tube, zero, z)),
    )


def _in_camera(views: Views, points: Points, normal: Vector) -> Vector:
    """Normals go by the transpose of canonical-from-camera."""
    m = columns(views.from_camera[:9], points.row(views, points.frame))
    return _unit(Vector(*(m[i] * normal.x + m[i + 3] * normal.y + m[i + 6] * normal.z for i in range(3))))


def _towards_camera(rays: Rays, hits: Hits) -> Vector:
    length = (rays.x * rays.x + rays.y * rays.y + 1).sqrt()
    return Vector(-rays.x / length, -rays.y / length, -1 / length)


def _unit(v: Vector) -> Vector:
    scale = 1 / v.dot(v).clamp_min(1e-20).sqrt()
    return Vector(v.x * scale, v.y * scale, v.z * scale)
