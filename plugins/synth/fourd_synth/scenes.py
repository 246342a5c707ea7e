"""What is in a scene and how it moves: closed formulas of time, sampled for a batch of scenes at once.

World: metres, z up. A surface point is (thing, canonical point X), and stands at A(t) X + b(t) in the world; this one
equation gives flow between any two frames, long tracks and what moves. The things of a scene have fixed slots:

    0        the room (a box seen from inside) or the dome (a sphere seen from inside)
    1        the ground under the dome, an endless plane
    2 ...    ellipsoids, boxes, cylinders, cut-outs (flat and thin), some not there, some fixed to another
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
from jaxtyping import Bool, Float64, Int64

from fourd_synth.draws import Draws

Array = Float64[np.ndarray, "..."]
FORWARD = np.array([1.0, 0.0, 0.0])
"""Where the cameras of layered scenes look."""


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


def sample_scenes(
    counts: Counts, seed: int, numbers: Sequence[int], *, speed: float, layers: float, duration: float
) -> Scenes:
    """The scenes of these numbers.

    Args:
        speed: scales all motion.
        layers: the share of scenes that are flat layers before a background.
        duration: seconds around t = 0 in which no thing shall be where the camera is.
    """
    d, n = Draws(seed, numbers), counts.things
    layered = d.chance(layers)
    room = d.chance(0.6)
    wide, far = d.uniform(3), d.uniform(3)
    half = np.where(
        room[:, None], [2.5, 2.5, 1.3] + wide * [3.5, 3.5, 1.2], [15.0, 15.0, 8.0] + far * [25.0, 25.0, 12.0]
    )
    space = np.where(room[:, None], half[:, :2], 5.0)
    pace = speed * np.exp(d.uniform(low=np.log(0.25), high=np.log(1.6)))
    camera = _camera(d, space, half, pace)
    alive = d.chance(0.88)[:, None]  # a share of scenes in which nothing moves but the camera
    moving = alive & d.chance(0.5, n) & (np.arange(n) >= 2)
    drive = np.where(moving, pace[:, None], 0.0)
    place = np.concatenate(
        [d.uniform(n, 2, low=-0.65, high=0.65) * space[:, None], d.uniform(n, 1, low=0.05, high=1.6)], -1
    )
    scale = d.uniform(n, 3, low=0.12, high=0.7) * d.uniform(n, 1, low=0.5, high=1.2)
    thin, axis = d.chance(0.15, n), d.integer(n, stop=3)
    scale = np.where(thin[..., None] & (np.arange(3) != axis[..., None]), 0.12 * scale, scale)
    upright = d.chance(0.4, n)
    turn_axis = np.where(upright[..., None], [0.0, 0.0, 1.0], d.direction(n))
    place[..., 2] = np.where(upright, scale[..., 2], place[..., 2])
    scale[:, counts.slots()[3]] *= [1.3, 1.3, 1.0]
    parent, attached = _parents(d, n)
    distance = 0.7 * (np.take_along_axis(scale, parent[..., None], 1).mean(-1) + scale.mean(-1))
    place = np.where(attached[..., None], d.direction(n) * distance[..., None], place)
    scale = scale * np.where(attached, 0.6, 1.0)[..., None]
    soft = np.where(d.chance(0.15, n), drive, 0.0)[..., None]
    scenes = Scenes(
        counts=counts,
        layered=layered,
        room=room,
        half=half,
        camera=camera,
        there=d.chance(0.75, n),
        moving=moving | np.take_along_axis(moving, parent, 1),
        scale=scale,
        place=place,
        turned=rotation(turn_axis, d.uniform(n, high=2 * np.pi)),
        velocity=d.normal(n, 3) * np.where(attached, 0.0, drive)[..., None] * [0.8, 0.8, 0.25],
        swing=Wave(
            d.normal(n, 3) * 0.25 * (drive * d.chance(0.5, n))[..., None],
            d.uniform(n, 1, low=1.0, high=6.0),
            d.uniform(n, 3, high=6.28),
        ),
        spin_axis=d.direction(n),
        spin=drive * d.normal(n) * 1.2 * d.chance(0.7, n),
        breath=Wave(
            np.clip(soft * d.uniform(n, 3, low=-0.3, high=0.3), -0.35, 0.35),
            d.uniform(n, 1, low=2.0, high=7.0),
            d.uniform(n, 1, high=6.28),
        ),
        shear=Wave(
            np.clip(soft[..., 0] * d.uniform(n, low=-0.5, high=0.5), -0.6, 0.6),
            d.uniform(n, low=2.0, high=7.0),
            np.zeros_like(drive),
        ),
        bounce=moving & ~attached & d.chance(0.2, n) & (speed > 0),
        parent=parent,
        outline=d.uniform(n, 6, low=-0.14, high=0.14),
        texture=d.integer(n, stop=1 << 30),
        density=d.uniform(n, low=0.3, high=1.4) * np.where((np.arange(n) < 2) & ~room[:, None], 0.3, 1.0),
        shift=d.uniform(n, 2),
        gain=d.uniform(n, 1, low=0.7, high=1.15)
        * d.uniform(n, 3, low=0.75, high=1.1)
        * d.uniform(1, 3, low=0.85, high=1.1),
        gloss=d.uniform(n) * d.chance(0.5, n),
        light=np.stack(
            [
                d.uniform(low=-0.8, high=0.8) * space[:, 0],
                d.uniform(low=-0.8, high=0.8) * space[:, 1],
                np.minimum(1.9 * half[:, 2], d.uniform(low=2.0, high=6.0)),
            ],
            -1,
        ),
        ambient=d.uniform(low=0.25, high=0.6),
    )
    scenes = _with_background(scenes)
    if layers > 0:
        scenes = _with_layers(scenes, d, speed)
    return _without_collisions(scenes, duration)


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


def _camera(d: Draws, space: Array, half: Array, pace: Array) -> Camera:
    """A camera off the middle that looks towards it: moving, standing still, or only turning."""
    angle, kind = d.uniform(high=2 * np.pi), d.uniform()
    moves, turns = np.where(kind < 0.75, pace, 0.0), np.where(kind < 0.87, pace, 0.0)
    out = np.stack([np.cos(angle), np.sin(angle)], -1) * space * d.uniform(2, low=0.55, high=0.85)
    height = np.minimum(d.uniform(low=0.4, high=1.9), 2 * half[:, 2] - 0.3)
    side = np.stack([-np.sin(angle), np.cos(angle), np.zeros_like(angle)], -1) * d.normal(1) * 0.35
    shake = Wave(d.normal(3) * 0.02 * moves[:, None], d.uniform(1, low=1.0, high=8.0), d.uniform(3, high=6.28))
    field = np.radians(d.uniform(low=40.0, high=80.0))
    return Camera(
        place=np.concatenate([out, height[:, None]], -1),
        velocity=moves[:, None] * (side + d.normal(3) * [0.2, 0.2, 0.08]),
        shake=shake,
        target=np.concatenate([d.normal(2) * 0.6, d.uniform(1, low=0.2, high=1.2)], -1),
        target_velocity=turns[:, None] * d.normal(3) * 0.35,
        roll=d.normal() * 0.08,
        rolling=turns * d.normal() * 0.08,
        focal=0.5 / np.tan(field / 2),
    )


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


def _parents(d: Draws, things: int) -> tuple[Int64[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
    """Some things in odd slots are fixed to one in an even slot."""
    own = np.arange(things)
    chosen = 2 + 2 * d.integer(things, stop=max((things - 1) // 2, 1))
    attached = d.chance(0.35, things) & (own % 2 == 1) & (own > 2) & (chosen < things)
    return np.where(attached, chosen, own), attached


def _with_parents(scenes: Scenes, spun: Array, linear: Array, offset: Array) -> tuple[Array, Array]:
    """What is fixed to another thing moves with it."""
    fixed = (scenes.parent != np.arange(scenes.counts.things))[:, None, :, None]
    batch, things = np.arange(len(scenes.parent))[:, None], scenes.parent
    turn = np.moveaxis(spun, 1, 2)[batch, things].swapaxes(1, 2)
    carried = product(turn, offset[..., None])[..., 0] + np.moveaxis(offset, 1, 2)[batch, things].swapaxes(1, 2)
    return np.where(fixed[..., None], product(turn, linear), linear), np.where(fixed, carried, offset)


def _with_background(scenes: Scenes) -> Scenes:
    """Slots 0 and 1: a room alone, or a dome over the ground."""
    room = scenes.room[:, None]
    scenes.turned[:, :2] = np.eye(3)
    scenes.scale[:, 0], scenes.scale[:, 1] = scenes.half, 1.0
    scenes.place[:, :2] = 0.0
    scenes.place[:, 0, 2] = np.where(scenes.room, scenes.half[:, 2], 0.0)
    scenes.there[:, :2] = np.concatenate([np.ones_like(room), ~room], -1)
    return scenes


def _with_layers(scenes: Scenes, d: Draws, speed: float) -> Scenes:
    """Where `layered`: a still camera that looks along x, before it a plane and cut-outs that move sideways."""
    n, rows = scenes.counts.things, scenes.layered
    flat = np.zeros(n, dtype=bool)
    flat[1], flat[scenes.counts.slots()[3]] = True, True
    behind = np.arange(n) == 1
    depth = np.where(behind, 8.0, d.uniform(n, low=2.0, high=6.0))
    reach = depth * 0.5 / scenes.camera.focal[:, None]  # half of what the picture shows there
    place = np.stack([depth, *np.moveaxis(d.uniform(n, 2, low=-0.9, high=0.9), -1, 0) * reach], -1)
    moving = flat & d.chance(0.8, n)
    drive = np.where(moving, speed, 0.0)
    sideways = d.normal(n, 2) * (drive * reach * d.uniform(n, low=0.05, high=1.0))[..., None]
    upright = rotation(np.array([0.0, 1.0, 0.0]), np.array(np.pi / 2))
    size = np.where(behind, 1.0, reach * d.uniform(n, low=0.1, high=0.5))[..., None] * d.uniform(
        n, 3, low=0.5, high=1.3
    )
    size[..., 2] = 1.0
    none, still = np.zeros((len(rows), n, 3)), np.zeros(3)
    camera = scenes.camera
    changes = {
        "there": flat & (behind | d.chance(0.8, n)),
        "moving": moving,
        "place": place,
        "scale": size,
        "turned": np.broadcast_to(upright, (len(rows), n, 3, 3)),
        "velocity": np.concatenate([none[..., :1], sideways], -1),
        "spin_axis": none + FORWARD,
        "spin": drive * d.normal(n) * 0.4 * d.chance(0.5, n),
        "bounce": np.zeros_like(moving),
        "parent": np.broadcast_to(np.arange(n), (len(rows), n)),
        "gloss": none[..., 0],
        "density": d.uniform(n, low=0.15, high=0.5) / reach * 1.5,
        "ambient": np.ones(len(rows)),
    }
    swing = Wave(none, scenes.swing.rate, scenes.swing.phase)
    grow = drive * d.uniform(n, low=-0.2, high=0.2) * d.chance(0.5, n)
    breath = Wave(np.stack([grow, grow, 0 * grow], -1), d.uniform(n, 1, low=1.0, high=4.0), none[..., :1])
    shear = Wave(none[..., 0], scenes.shear.rate, scenes.shear.phase)
    fixed = Camera(
        *(still + none[:, 0], still + none[:, 0]),
        Wave(none[:, 0], camera.shake.rate, camera.shake.phase),
        none[:, 0] + FORWARD,
        *(none[:, 0], none[:, 0, 0], none[:, 0, 0], camera.focal),
    )
    given: Scenes = attrs.evolve(scenes, swing=swing, breath=breath, shear=shear, camera=fixed, **changes)
    chosen: Scenes = _chosen(rows, given, scenes)
    return chosen


def _chosen(rows: Bool[np.ndarray, " b"], yes: Any, no: Any) -> Any:
    """Of two batches of one kind, the clips of the first where `rows`, else those of the second."""
    if isinstance(yes, np.ndarray):
        return np.where(rows.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)
    if isinstance(yes, Counts):
        return yes
    names = [field.name for field in attrs.fields(type(yes))]
    return type(yes)(**{name: _chosen(rows, getattr(yes, name), getattr(no, name)) for name in names})


def _without_collisions(scenes: Scenes, duration: float) -> Scenes:
    """Things that come near the camera at any time are left out."""
    times = np.broadcast_to(np.linspace(-0.5, 0.5, 9) * (duration + 0.2), (len(scenes.room), 9))
    at = poses(scenes, times)
    radius = np.sqrt((at.linear**2).sum((-2, -1)))
    away = at.offset - at.centre[:, :, None]
    near = (np.sqrt(dot(away, away)) < radius * 1.05 + 0.35).any(1)
    near[:, :2] = False
    return attrs.evolve(scenes, there=scenes.there & (~near | scenes.layered[:, None]))
