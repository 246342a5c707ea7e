"""A batch of scenes as cameras see them: tables on a device, composed in float64 before they are rounded.

A row of a table is a thing in a frame of a clip: row = (clip * frames + frame) * things + slot. What does not change
from frame to frame has a row per thing of a clip: clip * things + slot.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fourd_synth.scenes import Counts, Poses, Scenes, inverse, poses, product
from fourd_synth.shapes import CUTOUT_RADIUS, NEAR

CORNERS = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(8, 3)
LEAST_MOTION = 0.002
"""Metres between two frames from which on something counts as moving; less, but not nothing, is unknown."""


@attrs.frozen(eq=False)
class Views:
    """Tables of a batch of clips.

    Attributes:
        frames: of each clip.
        to_camera: row by row the 3 x 3 part and the shift of camera-from-canonical, in 12 columns.
        from_camera: the 3 x 3 part of canonical-from-camera, and where the camera is in canonical coordinates.
        to_world: as `to_camera`; tells what moves.
        bounds: in x / z and y / z least and greatest value, and least z, of each thing; infinite where it is not there.
        light: in the frame's camera.
        room: whether slot 0 is a room, frame by frame.
        moving, outline, texture, surface: per thing of a clip; `surface` is textures per canonical unit (3), textures
            per metre, shift (2), gain (3), gloss.
        world_from_cam: float64.
    """

    counts: Counts
    clips: int
    frames: int
    to_camera: Float[Tensor, "12 rows"]
    from_camera: Float[Tensor, "12 rows"]
    to_world: Float[Tensor, "12 rows"]
    bounds: Float[Tensor, "5 frames things"]
    light: Float[Tensor, "3 frames"]
    room: Bool[Tensor, " frames"]
    moving: Bool[Tensor, " solids"]
    outline: Float[Tensor, "6 solids"]
    texture: Int64[Tensor, " solids"]
    surface: Float[Tensor, "10 solids"]
    ambient: Float[Tensor, " clips"]
    focal: Float[Tensor, " clips"]
    world_from_cam: Float[Tensor, "b t 4 4"]

    def to(self, device: torch.device) -> Views:
        """The same on a device."""
        tensors: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in attrs.fields(Views)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return attrs.evolve(self, **tensors)


def views_of(scenes: Scenes, times: Float64[np.ndarray, "b t"], dtype: torch.dtype = torch.float32) -> Views:
    """What the cameras of a batch see at some times (seconds)."""
    at = poses(scenes, times)
    clips, frames = times.shape
    linear = product(at.cam_from_world[:, :, None], at.linear)
    shift = product(at.cam_from_world[:, :, None], (at.offset - at.centre[:, :, None])[..., None])[..., 0]
    back = inverse(linear)
    origin = -product(back, shift[..., None])[..., 0]
    to_light = (scenes.light[:, None] - at.centre)[..., None]
    light = product(at.cam_from_world, to_light)[..., 0]

    def table(*parts: Float64[np.ndarray, "..."]) -> Float[Tensor, "k rows"]:
        whole = np.concatenate(
            [part.reshape(*part.shape[: part.ndim - k], -1) for part, k in zip(parts, (2, 1), strict=True)], -1
        )
        return torch.from_numpy(np.ascontiguousarray(whole.reshape(-1, whole.shape[-1]).T)).to(dtype)

    def tensor(values: Float64[np.ndarray, "..."]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    surface = np.concatenate(
        [
            scenes.scale * scenes.density[..., None],
            scenes.density[..., None],
            scenes.shift,
            scenes.gain,
            scenes.gloss[..., None],
        ],
        -1,
    )
    return Views(
        counts=scenes.counts,
        clips=clips,
        frames=frames,
        to_camera=table(linear, shift),
        from_camera=table(back, origin),
        to_world=table(at.linear, at.offset),
        bounds=tensor(_bounds(scenes, linear, shift)).flatten(1, 2),
        light=tensor(np.moveaxis(light, -1, 0)).flatten(1),
        room=torch.from_numpy(np.repeat(scenes.room, frames)),
        moving=torch.from_numpy(scenes.moving.ravel()),
        outline=tensor(np.moveaxis(scenes.outline, -1, 0)).flatten(1),
        texture=torch.from_numpy(scenes.texture.ravel().copy()),
        surface=tensor(np.moveaxis(surface, -1, 0)).flatten(1),
        ambient=tensor(scenes.ambient),
        focal=tensor(scenes.camera.focal),
        world_from_cam=torch.from_numpy(_world_from_cam(at)),
    )


def _world_from_cam(at: Poses) -> Float64[np.ndarray, "b t 4 4"]:
    matrices = np.zeros((*at.centre.shape[:2], 4, 4))
    matrices[..., :3, :3] = at.cam_from_world.swapaxes(-1, -2)
    matrices[..., :3, 3] = at.centre
    matrices[..., 3, 3] = 1
    return matrices


def _bounds(
    scenes: Scenes, linear: Float64[np.ndarray, "b t n 3 3"], shift: Float64[np.ndarray, "b t n 3"]
) -> Float64[np.ndarray, "5 b t n"]:
    """The picture's rectangle in which a thing lies: that of the corners of a box around it."""
    reach = np.ones((scenes.counts.things, 3))
    reach[scenes.counts.slots()[3]] = [CUTOUT_RADIUS, CUTOUT_RADIUS, 0.0]
    arms = linear * reach[:, None, :]
    x, y, z = (shift[..., i, None] + sum(arms[..., i, j, None] * CORNERS[:, j] for j in range(3)) for i in range(3))
    near = z.min(-1)
    everywhere = near <= NEAR
    safe = np.maximum(z, NEAR)
    u, v = x / safe, y / safe
    sides = [(u.min(-1), -np.inf), (u.max(-1), np.inf), (v.min(-1), -np.inf), (v.max(-1), np.inf)]
    found = [np.where(everywhere, wide, side) for side, wide in sides]
    gone = ~scenes.there[:, None] | (z.max(-1) <= NEAR)
    return np.stack([np.where(gone, np.inf, found[0]), *found[1:], near])
