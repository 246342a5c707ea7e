"""Which scenes there are: drawn for a whole batch at once, each from its own stream of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from jaxtyping import Bool, Int64

from fourd_synth.draws import Draws
from fourd_synth.scenes import Array, Camera, Counts, Scenes, Wave, dot, poses, rotation

FORWARD = np.array([1.0, 0.0, 0.0])
"""Where the cameras of layered scenes look."""


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


def _parents(d: Draws, things: int) -> tuple[Int64[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
    """Some things in odd slots are fixed to one in an even slot."""
    own = np.arange(things)
    chosen = 2 + 2 * d.integer(things, stop=max((things - 1) // 2, 1))
    attached = d.chance(0.35, things) & (own % 2 == 1) & (own > 2) & (chosen < things)
    return np.where(attached, chosen, own), attached


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
