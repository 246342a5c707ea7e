"""What is in a scene and how it moves: closed formulas of time, for a batch of scenes at once.

World: metres, z up. A surface point is (thing, canonical point X), and stands at A(t) X + b(t) in the world; this one
equation gives flow between any two frames, long tracks and what moves. The things of a scene have fixed slots:

    0        the room (a box seen from inside) or the dome (a sphere seen from inside)
    1        the ground under the dome, an endless plane
    2 ...    ellipsoids, boxes, cylinders, cut-outs (flat and thin), some not there, some fixed to another
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import attrs
import numpy as np
from jaxtyping import Bool, Float64, Int64

Array = Float64[np.ndarray, "..."]


class Counts(NamedTuple):
    """How many slots a scene has for each shape."""

    ellipsoids: int = 4
    boxes: int = 4
    cylinders: int = 3
    cutouts: int = 3

    @property
    def things(self) -> int:
        """All slots, those of the background included."""
        return 2 + sum(self)

    def slots(self) -> tuple[slice, slice, slice, slice]:
        """The slots of ellipsoids, boxes, cylinders, cut-outs."""
        ends = np.cumsum([2, *self]).tolist()
        ellipsoids, boxes, cylinders, cutouts = (slice(*pair) for pair in itertools.pairwise(ends))
        return ellipsoids, boxes, cylinders, cutouts


@attrs.frozen(eq=False)
class Wave:
    """`size * (sin(rate t + phase) - sin(phase))`: swings about its value at t = 0."""

    size: Array
    rate: Array
    phase: Array

    def at(self, t: Array) -> Array:
        """Its value at times that broadcast with the arrays."""
        return self.size * (np.sin(self.rate * t + self.phase) - np.sin(self.phase))


@attrs.frozen(eq=False)
class Camera:
    """Where the cameras of a batch stand and look (`b ...`)."""

    place: Float64[np.ndarray, "b 3"]
    velocity: Float64[np.ndarray, "b 3"]
    shake: Wave
    target: Float64[np.ndarray, "b 3"]
    target_velocity: Float64[np.ndarray, "b 3"]
    roll: Float64[np.ndarray, " b"]
    rolling: Float64[np.ndarray, " b"]
    focal: Float64[np.ndarray, " b"]
    """In sides of the whole (square) picture."""


@attrs.frozen(eq=False)
class Scenes:
    """A batch of scenes (`b n ...`, n things each)."""

    counts: Counts
    layered: Bool[np.ndarray, " b"]
    room: Bool[np.ndarray, " b"]
    half: Float64[np.ndarray, "b 3"]
    """Half of the room's sides, or the dome's half axes; the camera stays inside."""
    camera: Camera
    there: Bool[np.ndarray, "b n"]
    moving: Bool[np.ndarray, "b n"]
    scale: Float64[np.ndarray, "b n 3"]
    place: Float64[np.ndarray, "b n 3"]
    turned: Float64[np.ndarray, "b n 3 3"]
    velocity: Float64[np.ndarray, "b n 3"]
    swing: Wave
    spin_axis: Float64[np.ndarray, "b n 3"]
    spin: Float64[np.ndarray, "b n"]
    breath: Wave
    shear: Wave
    bounce: Bool[np.ndarray, "b n"]
    parent: Int64[np.ndarray, "b n"]
    """The slot of the thing that it is fixed to; its own where there is none."""
    outline: Float64[np.ndarray, "b n 6"]
    """Of cut-outs: cosine and sine parts of the harmonics 2, 3 and 5 of the radius."""
    texture: Int64[np.ndarray, "b n"]
    density: Float64[np.ndarray, "b n"]
    """Textures per metre."""
    shift: Float64[np.ndarray, "b n 2"]
    gain: Float64[np.ndarray, "b n 3"]
    gloss: Float64[np.ndarray, "b n"]
    light: Float64[np.ndarray, "b 3"]
    ambient: Float64[np.ndarray, " b"]


class Poses(NamedTuple):
    """Where the things and the camera of each scene are at some times."""

    linear: Float64[np.ndarray, "b t n 3 3"]
    offset: Float64[np.ndarray, "b t n 3"]
    cam_from_world: Float64[np.ndarray, "b t 3 3"]
    centre: Float64[np.ndarray, "b t 3"]


def poses(scenes: Scenes, times: Float64[np.ndarray, "b t"]) -> Poses:
    """Everything's pose at some times (seconds, 0 in the middle of the video)."""
    t = times[:, :, None]  # b t 1, beside things
    spun = product(rotation(scenes.spin_axis[:, None], scenes.spin[:, None] * t), scenes.turned[:, None])
    size = scenes.scale[:, None] * (1 + _beside(scenes.breath).at(t[..., None]))
    linear = spun * size[..., None, :]
    sheared = _beside(scenes.shear).at(t) * scenes.scale[:, None, :, 0]
    linear[..., 2] += spun[..., 0] * sheared[..., None]
    offset = scenes.place[:, None] + scenes.velocity[:, None] * t[..., None] + _beside(scenes.swing).at(t[..., None])
    jump = scenes.scale.max(-1)[:, None] * 0.5 + 0.9 * np.abs(np.sin(3.2 * t + scenes.swing.phase[:, None, :, 0]))
    offset[..., 2] = np.where(scenes.bounce[:, None], jump, offset[..., 2])
    linear, offset = _with_parents(scenes, spun, linear, offset)
    return Poses(linear, offset, *_camera_at(scenes, times))


def rotation(axis: Float64[np.ndarray, "... 3"], angle: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "... 3 3"]:
    """Turning by an angle about a unit axis (Rodrigues' formula)."""
    x, y, z = np.moveaxis(axis, -1, 0)
    c, s = np.cos(angle), np.sin(angle)
    k = 1 - c
    rows = [
        [c + x * x * k, x * y * k - z * s, x * z * k + y * s],
        [y * x * k + z * s, c + y * y * k, y * z * k - x * s],
        [z * x * k - y * s, z * y * k + x * s, c + z * z * k],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def product(a: Float64[np.ndarray, "... 3 3"], b: Float64[np.ndarray, "... 3 k"]) -> Float64[np.ndarray, "... 3 k"]:
    """Matrix products written out: their last bit does not depend on what else is in the batch."""
    return sum(a[..., :, j : j + 1] * b[..., j : j + 1, :] for j in range(3))


def inverse(a: Float64[np.ndarray, "... 3 3"]) -> Float64[np.ndarray, "... 3 3"]:
    """Inverses by cofactors."""
    first, second, third = np.moveaxis(a, -1, 0)
    rows = np.stack([np.cross(second, third), np.cross(third, first), np.cross(first, second)], -2)
    return rows / dot(first, rows[..., 0, :])[..., None, None]


def dot(a: Float64[np.ndarray, "... 3"], b: Float64[np.ndarray, "... 3"]) -> Float64[np.ndarray, "..."]:
    """Inner products, written out as in `product`."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _beside(wave: Wave) -> Wave:
    """The same wave with an axis for times behind the batch."""
    return Wave(wave.size[:, None], wave.rate[:, None], wave.phase[:, None])


def _unit(v: Float64[np.ndarray, "... 3"]) -> Float64[np.ndarray, "... 3"]:
    return v / np.sqrt(dot(v, v))[..., None]


def _camera_at(scenes: Scenes, times: Float64[np.ndarray, "b t"]) -> tuple[Array, Array]:
    camera, t = scenes.camera, times[..., None]
    centre = camera.place[:, None] + camera.velocity[:, None] * t + _beside(camera.shake).at(t)
    low = np.concatenate([-0.95 * scenes.half[:, :2], np.full_like(scenes.half[:, :1], 0.15)], -1)[:, None]
    high = np.concatenate([0.95 * scenes.half[:, :2], 2 * scenes.half[:, 2:] - 0.15], -1)[:, None]
    centre = np.where(scenes.layered[:, None, None], centre, np.clip(centre, low, high))
    forward = _unit(camera.target[:, None] + camera.target_velocity[:, None] * t - centre)
    right = _unit(np.cross(forward, [0.0, 0.0, 1.0]))
    down = np.cross(forward, right)
    roll = (camera.roll[:, None] + camera.rolling[:, None] * np.sin(2 * times))[..., None]
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([right * c + down * s, down * c - right * s, forward], -2), centre


def _with_parents(scenes: Scenes, spun: Array, linear: Array, offset: Array) -> tuple[Array, Array]:
    """What is fixed to another thing moves with it."""
    fixed = (scenes.parent != np.arange(scenes.counts.things))[:, None, :, None]
    batch, things = np.arange(len(scenes.parent))[:, None], scenes.parent
    turn = np.moveaxis(spun, 1, 2)[batch, things].swapaxes(1, 2)
    carried = product(turn, offset[..., None])[..., 0] + np.moveaxis(offset, 1, 2)[batch, things].swapaxes(1, 2)
    return np.where(fixed[..., None], product(turn, linear), linear), np.where(fixed, carried, offset)
