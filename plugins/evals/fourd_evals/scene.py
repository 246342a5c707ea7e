"""A small world of plane patches with known poses, traced by hand: what the miniatures of data sets show.

The background is a wall, `bodies` stand or move before it. Every number is exact: each pixel shows a point of a plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import attrs
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from fourd_core.geometry import directions, inverse, pixel_centres, project, rigid, rotate, transform
from fourd_core.media.formats.rotations import rotation_from_quaternion

Pose = Float64[Tensor, "t 4 4"]
WALL = 100.0
"""Half the wall's side in metres: it fills every picture."""


def poses(centres: Sequence[Sequence[float]], turns: Sequence[Sequence[float]]) -> Pose:
    """Poses from positions and rotation vectors (radians), one of each per frame."""
    turn = torch.tensor(turns, dtype=torch.float64)
    angle = turn.norm(dim=-1, keepdim=True)
    axis = turn / angle.clamp(min=1e-12)
    quaternion = torch.cat([(angle / 2).cos(), axis * (angle / 2).sin()], -1)
    return rigid(rotation_from_quaternion(quaternion), torch.tensor(centres, dtype=torch.float64))


@attrs.frozen(eq=False)
class Traced:
    """What places in a frame show.

    Attributes:
        depth: z.
        body: 0 the wall, else the number of the body.
        point: on the patch, in its own axes.
    """

    depth: Float64[Tensor, "*n"]
    body: Int64[Tensor, "*n"]
    point: Float64[Tensor, "*n 3"]


@attrs.define(eq=False, slots=False)
class Scene:
    """The wall and the bodies, and the camera that sees them; OpenCV axes, metres, pixel centres at +0.5."""

    size: tuple[int, int]
    intrinsics: Float64[Tensor, "3 3"]
    camera: Pose
    """`world_from_cam`."""
    bodies: Float64[Tensor, "t k 4 4"]
    """Poses of the patches, the wall's first; a patch lies in the plane z = 0 of its own axes."""
    half: tuple[tuple[float, float], ...]
    """Half the extent of each patch in metres, the wall's first."""
    texture: int = 0
    """Another number, other colours."""

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.camera)

    @cached_property
    def traced(self) -> list[Traced]:
        """What each frame's pixels show."""
        return [self.trace(frame, self._centres) for frame in range(self.frames)]

    def trace(self, frame: int, xy: Float64[Tensor, "*n 2"]) -> Traced:
        """What places in a frame show."""
        rays = rotate(self.camera[frame, :3, :3], directions(xy, self.intrinsics))
        depth = torch.full(xy.shape[:-1], torch.inf, dtype=torch.float64)
        body = torch.zeros(xy.shape[:-1], dtype=torch.long)
        point = torch.zeros(*xy.shape[:-1], 3, dtype=torch.float64)
        for number, half in enumerate(self.half):
            back = inverse(self.bodies[frame, number])
            origin, ray = transform(back, self.camera[frame, :3, 3]), rotate(back[:3, :3], rays)
            z = -origin[2] / ray[..., 2]
            own = origin + z[..., None] * ray
            hit = (z > 0) & (z < depth) & (own[..., :2].abs() <= own.new_tensor(half)).all(-1)
            depth, body = z.where(hit, depth), body.where(~hit, number)
            point = own.where(hit[..., None], point)
        return Traced(depth, body, point)

    def unhidden(self, point: Float64[Tensor, "n 3"], body: Int64[Tensor, " n"], frame: int) -> Bool[Tensor, " n"]:
        """Whether points of bodies are seen in a frame: within it, and the first thing on their ray."""
        xy, seen = self.place(point, body, frame)
        inside = ((xy >= 0) & (xy <= xy.new_tensor(self.size[::-1]))).all(-1)
        return inside & (seen[:, 2] > 0) & (self.trace(frame, xy).depth >= seen[:, 2] * (1 - 1e-9))

    @property
    def _centres(self) -> Float64[Tensor, "h w 2"]:
        return pixel_centres(self.size, like=self.intrinsics)

    def place(
        self, point: Float64[Tensor, "*n 3"], body: Int64[Tensor, "*n"], frame: int
    ) -> tuple[Float64[Tensor, "*n 2"], Float64[Tensor, "*n 3"]]:
        """Where points of bodies are in a frame: pixels, and in the camera's axes."""
        world = transform(self.bodies[frame][body], point)
        seen = transform(inverse(self.camera[frame]), world)
        return project(seen, self.intrinsics), seen

    def flow(self, frame: int, to: int) -> Float64[Tensor, "2 h w"]:
        """From each pixel of a frame to where its content is in another one."""
        shown = self.traced[frame]
        xy, _ = self.place(shown.point, shown.body, to)
        return (xy - self._centres).movedim(-1, 0)

    def moving(self, frame: int) -> Bool[Tensor, "h w"]:
        """Which pixels show a body that moves between this frame and the one before (the first: after)."""
        other = frame - 1 if frame else 1
        moves = (self.bodies[frame] - self.bodies[other]).abs().amax(dim=(1, 2)) > 1e-9
        return moves[self.traced[frame].body]

    def picture(self, frame: int) -> UInt8[Tensor, "3 h w"]:
        """Colours that belong to the points."""
        shown = self.traced[frame]
        x, y, _ = shown.point.unbind(-1)
        waves = [torch.sin(5 * x + c + self.texture) * torch.cos(4 * y - c * self.texture) for c in range(3)]
        return ((torch.stack(waves) + 1) * 100 + 25 * shown.body).round().clamp(0, 255).to(torch.uint8)


def known_scene(
    size: tuple[int, int] = (24, 32), frames: int = 4, texture: int = 0, middle: tuple[float, float] | None = None
) -> Scene:
    """A wall 6 m away, a patch that moves and turns before it, and one that rests; the camera moves, turns and rolls.

    Args:
        middle: the principal point; none: the middle of the frame.
    """
    steps = range(frames)
    height, width = size
    cx, cy = middle or (width / 2, height / 2)
    intrinsics = torch.tensor([[width / 2, 0, cx], [0, width / 2, cy], [0, 0, 1]], dtype=torch.float64)
    camera = poses([(0.10 * t, -0.05 * t, 0.08 * t) for t in steps], [(0.01 * t, -0.02 * t, 0.05 * t) for t in steps])
    wall = poses([(0, 0, 6)] * frames, [(0, 0.1, 0)] * frames)
    mover = poses([(-1 + 0.2 * t, 0.1 * t, 3) for t in steps], [(0, 0.3, 0.1 * t) for t in steps])
    rests = poses([(1.4, 0.4, 4)] * frames, [(0.2, 0, 0.3)] * frames)
    bodies = torch.stack([wall, mover, rests], dim=1)
    return Scene(size, intrinsics, camera, bodies, ((WALL, WALL), (0.9, 0.7), (0.8, 0.6)), texture)
