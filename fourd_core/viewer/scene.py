"""What a run found out about a video, in space and time: points, cameras and tracks of a few of its frames.

However long the video and however large its frames, a scene holds a bounded number of points.
"""

from __future__ import annotations

from math import radians, tan

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fourd_core.data import VISIBLE, Queries
from fourd_core.errors import RunError
from fourd_core.geometry import assumed_intrinsics, pixel_centres, track_points
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore, stored_view
from fourd_core.media.clouds import point_cloud, thinning
from fourd_core.media.formats.points import PointCloud
from fourd_core.media.panels import fitted, panel_size
from fourd_core.media.trails import point_colours
from fourd_core.progress import track

POINTS, POINTS_A_FRAME, TRACKS = 400_000, 30_000, 1024
"""At most about as many points in all frames together, in one frame, and at most as many tracks."""
STEEPEST = 85.0
"""Degrees from head-on at which a surface may be seen; what seems steeper is the smear between two surfaces."""
PICTURE = 160
"""The longer side of the picture that a camera shows."""


@attrs.frozen(eq=False)
class Moment:
    """One frame.

    Attributes:
        frame: its number in the video.
        points: in the world.
        colours: of the points.
        picture: the frame, small.
        world_from_cam: its camera.
        intrinsics: in pixels of the video.
        size: height and width of the video.
    """

    frame: int
    points: Float[Tensor, "n 3"]
    colours: UInt8[Tensor, "n 3"]
    picture: UInt8[Tensor, "3 h w"]
    world_from_cam: Float[Tensor, "4 4"]
    intrinsics: Float[Tensor, "3 3"]
    size: tuple[int, int]


@attrs.frozen(eq=False)
class Paths:
    """Tracks in the world: where each point is at each moment (NaN: unknown), when it is seen, and its colour."""

    xyz: Float[Tensor, "t n 3"]
    seen: Bool[Tensor, "t n"]
    colours: Float[Tensor, "n 3"]


@attrs.frozen(eq=False)
class Scene:
    """All of it.

    Attributes:
        moments: the frames that were chosen, in order.
        paths: none where no head tracks, or none says how far its points are.
        spacing: pixels of the video between two neighbouring points.
        notes: sentences about what is assumed or left out.
    """

    moments: list[Moment]
    paths: Paths | None
    spacing: float
    notes: list[str]


def gather(store: ArrayStore, video: Video, frames: int, queries: Queries | None = None) -> Scene:
    """Read a scene from the arrays of a run.

    Args:
        frames: how many are chosen at most, evenly over the video.
        queries: the points that were followed, which fix the tracks' colours.
    Raises:
        RunError: nothing in the arrays has a place in space.
        MediaError: a frame cannot be decoded.
    """
    count = store.done
    chosen = [round(i) for i in np.linspace(0, count - 1, min(frames, count)).tolist()]
    depths, poses = store.of_kind("depth"), store.of_kind("world_from_cam")
    if not (depths or poses):
        raise RunError(
            f"{store.folder} holds nothing that has a place in space: a viewer needs a head that predicts depth or "
            "cameras"
        )
    notes = [f"{len(chosen)} of {count} frames"] if len(chosen) < count else [f"{count} frames"]
    world_from_cam, intrinsics = _cameras(store, video, chosen, notes)
    step, spacing, xy = 1, 1.0, torch.zeros(0, 0, 2)
    if depths:
        height, width = store[depths[0]].shape[-2:]
        limit = max(1, min(POINTS_A_FRAME, POINTS // len(chosen)))
        step, xy = thinning(height * width, limit), _map_pixels(store, video, (height, width))
        spacing = step * _spacing(xy)
    if len(depths) > 1:
        notes.append(f"depth of the head {depths[0]}")
    moments = []
    for place, frame in enumerate(track(chosen, "scene", len(chosen))):
        rgb = video.read([frame])[0]
        depth = torch.from_numpy(store[depths[0]][frame]).float()[0] if depths else torch.zeros(0, 0)
        cloud = _cloud(depth, xy, rgb, intrinsics[place], world_from_cam[place], step)
        moments.append(
            Moment(
                frame, cloud.xyz, cloud.rgb,
                fitted(rgb[None], panel_size(video.size, PICTURE))[0], world_from_cam[place], intrinsics[place],
                video.size,
            )
        )  # fmt: skip
    return Scene(moments, _paths(store, chosen, world_from_cam, intrinsics, queries, notes), spacing, notes)


def edges(depth: Float[Tensor, "h w"], focal: float) -> Bool[Tensor, "h w"]:
    """Pixels whose neighbours are much nearer or farther, or unknown.

    Args:
        focal: in pixels of the map. A surface's depth changes from pixel to pixel by `tan(angle) / focal` of itself.
    """
    known = depth.where(depth.isfinite() & (depth > 0), torch.inf)[None, None]
    near, far = -F.max_pool2d(-known, 3, 1, 1)[0, 0], F.max_pool2d(known, 3, 1, 1)[0, 0]
    return ~(far - near < 2 * tan(radians(STEEPEST)) / focal * near)


def _cameras(
    store: ArrayStore, video: Video, chosen: list[int], notes: list[str]
) -> tuple[Float[Tensor, "t 4 4"], Float[Tensor, "t 3 3"]]:
    found = store.of_kind("world_from_cam")
    if found:
        head = found[0].rpartition(".")[0]
        return _rows(store, found[0], chosen), _rows(store, f"{head}.intrinsics", chosen)
    pinhole = video.intrinsics
    said = "the video's own pinhole"
    if pinhole is None:
        pinhole = assumed_intrinsics(video.size)
        said = f"an assumed focal length of {min(video.size)} pixels"
    notes.append(f"no head predicts cameras: drawn as if the camera stood still, with {said}")
    count = len(chosen)
    return torch.eye(4).expand(count, 4, 4), pinhole.float().expand(count, 3, 3)


def _map_pixels(store: ArrayStore, video: Video, size: tuple[int, int]) -> Float[Tensor, "h w 2"]:
    """Where the pixels of the maps lie in the video."""
    if store.attributes.get("pixels") == "view":
        return stored_view(store).to_video(pixel_centres(size))
    return pixel_centres(video.size, size)


def _cloud(
    depth: Float[Tensor, "h w"],
    xy: Float[Tensor, "h w 2"],
    rgb: UInt8[Tensor, "3 y x"],
    intrinsics: Float[Tensor, "3 3"],
    world_from_cam: Float[Tensor, "4 4"],
    step: int,
) -> PointCloud:
    """The points of a frame, but for edges."""
    if not depth.numel():
        return PointCloud(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))
    clear = ~edges(depth, float(intrinsics[0, 0]) / _spacing(xy))
    return point_cloud(depth, xy, rgb, intrinsics, world_from_cam, step, clear)


def _spacing(xy: Float[Tensor, "h w 2"]) -> float:
    """Pixels of the video between two neighbouring pixels of the maps."""
    return float(xy[0, -1, 0] - xy[0, 0, 0]) / max(xy.shape[1] - 1, 1) or 1.0


def _paths(
    store: ArrayStore,
    chosen: list[int],
    world_from_cam: Float[Tensor, "t 4 4"],
    intrinsics: Float[Tensor, "t 3 3"],
    queries: Queries | None,
    notes: list[str],
) -> Paths | None:
    heads = [name.rpartition(".")[0] for name in store.of_kind("xy")]
    with_depth = [head for head in heads if f"{head}.depth" in store]
    if not with_depth:
        if heads:
            notes.append(f"the tracks of {heads[0]} have no depth and are left out")
        return None
    head = with_depth[0]
    total = store[f"{head}.xy"].shape[1]
    some = torch.linspace(0, total - 1, min(total, TRACKS)).round().long()
    if len(some) < total:
        notes.append(f"{len(some)} of {total} tracks")
    xy = _rows(store, f"{head}.xy", chosen, some)
    if f"{head}.xyz" in store:
        xyz = _rows(store, f"{head}.xyz", chosen, some)
    else:
        z = _rows(store, f"{head}.depth", chosen, some)
        xyz = track_points(xy[None], z[None], intrinsics[None], world_from_cam[None])[0]
    seen = (_rows(store, f"{head}.visibility", chosen, some) > VISIBLE) & xyz.isfinite().all(-1)
    y = xy[0, :, 1] if queries is None else queries.xy[0, some, 1].to(xy)
    return Paths(xyz, seen, point_colours(y))


def _rows(store: ArrayStore, name: str, chosen: list[int], some: Int[Tensor, " n"] | None = None) -> Tensor:
    rows = torch.stack([torch.from_numpy(np.asarray(store[name][frame])) for frame in chosen]).float()
    return rows if some is None else rows[:, some]
