"""What follows from the poses of rigid bodies and what each pixel shows: which pixels move, and where points go.

Body 0 is the background, which stays where it is; body `k` is the k-th one of the poses given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fourd_core.data import Tracks
from fourd_core.geometry import inverse, pixel_centres, project, transform, unproject
from fourd_evals.trajectories import tracks_of_points


def moving(poses: Float[Tensor, "n t 4 4"], radius: Float[Tensor, " n"], still: float) -> Bool[Tensor, "n t"]:
    """Whether a body moves between a frame and the one before it (the first: the one after it).

    Args:
        radius: how far a body reaches from its origin.
        still: what no point of it may exceed to count as resting, in the unit of the poses.
    """
    if poses.shape[1] < 2:
        return torch.zeros(poses.shape[:2], dtype=torch.bool)
    step = poses.diff(dim=1)
    # The chord of the farthest point: the rotations' difference has its angle's chord as the largest singular value.
    turn = torch.linalg.matrix_norm(step[..., :3, :3], ord=2) if len(poses) else step.new_zeros(step.shape[:2])
    reach = step[..., :3, 3].norm(dim=-1) + turn * radius[:, None]
    moves = reach > still
    return torch.cat([moves[:, :1], moves], dim=1)


def follow(
    xy: Float[Tensor, "n 2"],
    depth: Float[Tensor, " n"],
    body: Int64[Tensor, " n"],
    seen_from: Float[Tensor, "4 4"],
    at_start: Float[Tensor, "k 4 4"],
    poses: Float[Tensor, "t k 4 4"],
    intrinsics: Float[Tensor, "3 3"],
) -> Float[Tensor, "t n 3"]:
    """Where the points that a frame shows are in the world at other times: each goes with its body.

    Args:
        depth: z in the frame that shows them.
        seen_from: its `world_from_cam`.
        at_start: the bodies' poses then, background first.
        poses: their poses at the other times.
    """
    world = transform(seen_from, unproject(xy, depth, intrinsics))
    own = transform(inverse(at_start)[body], world)
    return transform(poses[:, body], own)


def unhidden(
    xy: Float[Tensor, "n 2"],
    depth: Float[Tensor, " n"],
    body: Int64[Tensor, " n"],
    depth_map: Float[Tensor, "h w"],
    body_map: Int64[Tensor, "h w"],
    tolerance: float,
) -> Bool[Tensor, " n"]:
    """Whether points are seen in a frame: their pixel shows their body, and they are not behind its surface there.

    The surface's depth is interpolated between the four nearest pixels, of those that show the same body, in 1 / depth,
    which is exact on planes; a point may be farther by the share `tolerance`.
    """
    height, width = depth_map.shape
    extent = xy.new_tensor([width, height])
    inside = (depth > 0) & ((xy >= 0) & (xy < extent)).all(-1)
    xy = xy.where(inside[:, None], 0.0)
    column, row = xy.long().unbind(-1)
    corner = (xy - 0.5).floor()
    share = xy - 0.5 - corner
    total, weights = torch.zeros_like(depth), torch.zeros_like(depth)
    for right in (0, 1):
        for below in (0, 1):
            weight = (share[:, 0] if right else 1 - share[:, 0]) * (share[:, 1] if below else 1 - share[:, 1])
            x = (corner[:, 0].long() + right).clamp(0, width - 1)
            y = (corner[:, 1].long() + below).clamp(0, height - 1)
            near = depth_map[y, x]
            weight = weight * (near.isfinite() & (body_map[y, x] == body))
            total, weights = total + weight / near.where(near.isfinite(), 1.0), weights + weight
    in_front = depth * total <= weights * (1 + tolerance)
    return inside & (body_map[row, column] == body) & (weights > 0) & in_front


def tracks_between(
    frames: Sequence[int],
    points: Sequence[Int64[Tensor, " _"]],
    depth_maps: Float[Tensor, "t h w"],
    body_maps: Int64[Tensor, "t h w"],
    world_from_cam: Float[Tensor, "t 4 4"],
    bodies: Float[Tensor, "t k 4 4"],
    intrinsics: Float[Tensor, "3 3"],
    tolerance: float,
) -> Tracks:
    """Tracks through some frames of the points that chosen pixels of some of them show.

    Args:
        frames: in which of the `t` frames points are named.
        points: of each of these, the numbers of pixels in row-major order; their depth is known.
        bodies: the poses, background first.
    """
    size = depth_maps.shape[-2], depth_maps.shape[-1]
    centres = pixel_centres(size, like=depth_maps).flatten(0, 1)
    worlds, names = [], []
    for frame, chosen in zip(frames, points, strict=True):
        body = body_maps[frame].flatten()[chosen]
        depth = depth_maps[frame].flatten()[chosen]
        start = world_from_cam[frame], bodies[frame]
        worlds.append(follow(centres[chosen], depth, body, *start, bodies, intrinsics))
        names.append(body)
    world, body = torch.cat(worlds, dim=1), torch.cat(names)
    cam_from_world = inverse(world_from_cam)
    camera = transform(cam_from_world[:, None], world)
    xy = project(camera, intrinsics)
    visible = torch.stack(
        [unhidden(xy[t], camera[t, :, 2], body, depth_maps[t], body_maps[t], tolerance) for t in range(len(depth_maps))]
    )
    return tracks_of_points(xy, visible, torch.ones_like(visible), world, cam_from_world)
