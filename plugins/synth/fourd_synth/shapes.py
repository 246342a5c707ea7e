"""Where a ray meets the canonical shapes: sphere, cube [-1, 1]^3, cylinder, cut-out and plane in z = 0.

A ray is origin + s * direction, both canonical; `s` is infinite where it misses. Everything is written out in sums,
products, quotients and roots of numbers: their last bit does not depend on how a tensor is laid out in memory, so a
clip is the same whatever batch it is in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEAR = 0.1
"""Metres before the camera in which nothing is seen."""
TINY = 1e-9


class Vector(NamedTuple):
    """Three components that broadcast with each other."""

    x: Float[Tensor, "*#m"]
    y: Float[Tensor, "*#m"]
    z: Float[Tensor, "*#m"]

    def dot(self, other: Vector) -> Float[Tensor, "*#m"]:
        """The inner product."""
        return self.x * other.x + self.y * other.y + self.z * other.z

    def plus(self, s: Float[Tensor, "*#m"], other: Vector) -> Vector:
        """`self + s * other`."""
        return Vector(*(a + s * b for a, b in zip(self, other, strict=True)))


def room(o: Vector, d: Vector) -> Float[Tensor, "*#m"]:
    """Where a ray leaves the cube in which it starts."""
    exits = [torch.where(b < 0, -1 - a, 1 - a) / _safe(b) for a, b in zip(o, d, strict=True)]
    return torch.minimum(torch.minimum(exits[0], exits[1]), exits[2])


def dome(o: Vector, d: Vector) -> Float[Tensor, "*#m"]:
    """Where a ray leaves the sphere in which it starts."""
    middle, half, _ = _sphere(o, d)
    return middle + half


def plane(o: Vector, d: Vector) -> Float[Tensor, "*#m"]:
    """The endless plane z = 0."""
    s = -o.z / _safe(d.z)
    return _hit(s > NEAR, s)


def ellipsoid(o: Vector, d: Vector) -> Float[Tensor, "*#m"]:
    """The unit sphere."""
    middle, half, inside = _sphere(o, d)
    return _first(middle - half, middle + half, inside)


def box(o: Vector, d: Vector) -> Float[Tensor, "*#m"]:
    """The cube [-1, 1]^3 (by its three slabs)."""
    enter, leave = _slab(o.x, d.x)
    for a, b in ((o.y, d.y), (o.z, d.z)):
        low, high = _slab(a, b)
        enter, leave = torch.maximum(enter, low), torch.minimum(leave, high)
    return _first(enter, leave, leave >= enter)


def cylinder(o: Vector, d: Vector) -> Float[Tensor, "*#m"]:
    """The upright cylinder of radius 1 from z = -1 to z = 1, closed."""
    across = (d.x * d.x + d.y * d.y).clamp_min(TINY * TINY)
    middle = -(o.x * d.x + o.y * d.y) / across
    x, y = o.x + middle * d.x, o.y + middle * d.y
    free = 1 - x * x - y * y
    half = (free.clamp_min(0) / across).sqrt()
    low, high = _slab(o.z, d.z)
    enter, leave = torch.maximum(middle - half, low), torch.minimum(middle + half, high)
    return _first(enter, leave, (free > 0) & (leave >= enter))


def cutout(o: Vector, d: Vector, outline: tuple[Float[Tensor, "*#m"], ...]) -> Float[Tensor, "*#m"]:
    """A flat piece of z = 0 whose radius is 0.8 plus harmonics of the angle: cos and sin parts of 2, 3 and 5."""
    s = -o.z / _safe(d.z)
    x, y = o.x + s * d.x, o.y + s * d.y
    r = (x * x + y * y).sqrt()
    c1, s1 = x / r.clamp_min(TINY), y / r.clamp_min(TINY)
    c2, s2 = c1 * c1 - s1 * s1, 2 * c1 * s1
    c3, s3 = c2 * c1 - s2 * s1, s2 * c1 + c2 * s1
    c5, s5 = c2 * c3 - s2 * s3, s2 * c3 + c2 * s3
    waves = zip(outline, (c2, s2, c3, s3, c5, s5), strict=True)
    return _hit((r < 0.8 + sum(a * b for a, b in waves)) & (s > NEAR), s)


CUTOUT_RADIUS = 1.5
"""No outline whose six numbers are at most 0.14 reaches farther: 0.8 + 3 * 0.14 * sqrt(2)."""


def _safe(x: Float[Tensor, "*#m"]) -> Float[Tensor, "*#m"]:
    return torch.where(x.abs() < TINY, TINY, x)


def _hit(met: Bool[Tensor, "*#m"], s: Float[Tensor, "*#m"]) -> Float[Tensor, "*#m"]:
    return torch.where(met, s, torch.inf)


def _first(enter: Float[Tensor, "*#m"], leave: Float[Tensor, "*#m"], met: Bool[Tensor, "*#m"]) -> Float[Tensor, "*#m"]:
    """The nearer crossing, or the farther one where the ray starts inside."""
    s = torch.where(enter > NEAR, enter, leave)
    return _hit(met & (s > NEAR), s)


def _slab(o: Float[Tensor, "*#m"], d: Float[Tensor, "*#m"]) -> tuple[Float[Tensor, "*#m"], Float[Tensor, "*#m"]]:
    inverse = 1 / _safe(d)
    middle, half = -o * inverse, inverse.abs()
    return middle - half, middle + half


def _sphere(o: Vector, d: Vector) -> tuple[Float[Tensor, "*#m"], Float[Tensor, "*#m"], Bool[Tensor, "*#m"]]:
    """The nearest approach to the middle, half of the chord there, and whether there is one.

    From the point of nearest approach, not from the textbook's discriminant: that cancels for small, far spheres.
    """
    length = d.dot(d)
    middle = -o.dot(d) / length
    nearest = o.plus(middle, d)
    free = 1 - nearest.dot(nearest)
    return middle, (free.clamp_min(0) / length).sqrt(), free > 0
