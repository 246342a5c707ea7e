"""A generated scene with known geometry: a box that slides over a floor in front of a wall, seen by a moving camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fourd_core.data import Cameras, Maps, Predictions, Queries, Tracks
from fourd_core.geometry import compose, directions, inverse, pixel_centres, project, rotate, transform
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.views import View, exact
from fourd_core.placement import Pixels, in_video
from fourd_core.sinks import ArraySink
from fourd_core.streaming import Finished

FLOOR, WALL, HALF = 1.0, 6.0, 0.5


class KnownScene(Video):
    """The scene as a video that knows its depth, flow, mask, cameras and tracks.

    Args:
        frames: how many.
        size: height and width.
    """

    def __init__(self, frames: int = 16, size: tuple[int, int] = (72, 96)) -> None:
        self.name, self.frame_count, self.size = "scene", frames, size
        height, width = size
        focal = 0.9 * width
        self.camera = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        self.world_from_cam = torch.stack([self._pose(t / max(frames - 1, 1)) for t in range(frames)])
        self.centre = torch.tensor([[-0.8 + 1.6 * t / max(frames - 1, 1), FLOOR - HALF, 3.5] for t in range(frames)])
        xy = pixel_centres(size)
        rays = rotate(self.world_from_cam[:, None, None, :3, :3], directions(xy, self.camera))
        self.depth, self.on_box, self.points = self._hit(rays)
        self.rgb = self._colours()

    @staticmethod
    def _pose(share: float) -> Tensor:
        turn = 0.25 * (share - 0.5)
        pose = torch.eye(4)
        pose[0, 0], pose[0, 2] = math.cos(turn), math.sin(turn)
        pose[2, 0], pose[2, 2] = -math.sin(turn), math.cos(turn)
        pose[:3, 3] = torch.tensor([-0.6 * (share - 0.5), -0.2 * share, 0.3 * share])
        return pose

    def _hit(self, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Depth `t h w` (the rays have depth 1), whether it is the box's, and the points in the world."""
        start = self.world_from_cam[:, None, None, :3, 3]
        floor = torch.where(rays[..., 1] > 1e-6, (FLOOR - start[..., 1]) / rays[..., 1], math.inf)
        wall = (WALL - start[..., 2]) / rays[..., 2]
        near = (self.centre[:, None, None] - HALF - start) / rays
        far = (self.centre[:, None, None] + HALF - start) / rays
        enter, leave = torch.minimum(near, far).amax(-1), torch.maximum(near, far).amin(-1)
        box = torch.where(enter < leave, enter, math.inf)
        depth = torch.minimum(torch.minimum(floor, wall), box)
        return depth, box == depth, start + rays * depth[..., None]

    def _colours(self) -> Tensor:
        local = torch.where(self.on_box[..., None], self.points - self.centre[:, None, None], self.points)
        checks = ((local * 3 + 0.01).floor().sum(-1) % 2)[..., None]
        paint = torch.where(self.on_box[..., None], torch.tensor([230.0, 120.0, 40.0]), torch.tensor([90.0, 130, 190]))
        return (paint * (0.6 + 0.4 * checks)).byte().permute(0, 3, 1, 2).contiguous()

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.rgb[list(indices)]

    def times(self, indices: Sequence[int]) -> Tensor:
        return torch.as_tensor(list(indices), dtype=torch.float64) / 15

    def flow(self) -> Tensor:
        """Where each pixel's content stood in the frame before, `t 2 h w`; unknown for the first."""
        moved = self.points[1:] - (self.centre[1:] - self.centre[:-1])[:, None, None] * self.on_box[1:, ..., None]
        before = project(transform(inverse(self.world_from_cam[:-1])[:, None, None], moved), self.camera)
        flow = (before - pixel_centres(self.size)).permute(0, 3, 1, 2)
        return torch.cat([torch.full_like(flow[:1], math.nan), flow])

    def tracks(self, side: int = 8) -> tuple[Queries, Tracks]:
        """A grid of points named in the first frame and followed through all."""
        height, width = self.size
        place = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(place * height, place * width, indexing="ij")
        xy = torch.stack([x.flatten(), y.flatten()], -1).floor() + 0.5  # where the depth is known
        row, column = xy[:, 1].long(), xy[:, 0].long()
        rays = rotate(self.world_from_cam[0, :3, :3], directions(xy, self.camera))
        world = self.world_from_cam[0, :3, 3] + rays * self.depth[0, row, column, None]
        moved = (self.centre - self.centre[:1])[:, None] * self.on_box[0, row, column, None]
        camera = transform(inverse(self.world_from_cam)[:, None], world + moved)
        seen = project(camera, self.camera)
        inside = ((seen >= 0) & (seen < torch.tensor([width, height]))).all(-1)
        column, row = seen.nan_to_num(0).long().clamp(min=0).unbind(-1)
        frame = torch.arange(self.frame_count)[:, None]
        met = self.depth[frame, row.clamp(max=height - 1), column.clamp(max=width - 1)]
        visible = (inside & (camera[..., 2] < 1.05 * met)).float()
        live = torch.ones_like(visible, dtype=torch.bool)
        return Queries(torch.zeros(1, len(xy), dtype=torch.long), xy[None]), Tracks(
            seen[None], visible[None], live[None], camera[None, ..., 2]
        )

    def predictions(self) -> Predictions:
        """What perfect heads would say."""
        poses = compose(inverse(self.world_from_cam[:1]), self.world_from_cam)
        features = torch.cat([self.points.permute(0, 3, 1, 2), self.on_box[:, None] * 3.0], 1)
        return Predictions({
            "depth": Maps(self.depth[None, :, None], kind="depth"),
            "flow": Maps(self.flow()[None], kind="flow", unit="px"),
            "moving": Maps(self.on_box[None, :, None] * 0.9 + 0.05, kind="mask"),
            "features": Maps(features[None]),
            "camera": Cameras(poses[None], self.camera.expand(1, self.frame_count, 3, 3)),
            "track": self.tracks()[1],
        })  # fmt: skip

    def store(
        self,
        folder: Path,
        leave_out: Sequence[str] = (),
        *,
        view: View | None = None,
        pixels: Pixels = "video",
    ) -> ArrayStore:
        """The arrays that a run would leave, `leave_out` some heads' or fields'."""
        import attrs

        view = view or exact(self.size, self.size)
        about = {"view": attrs.asdict(view), "pixels": pixels, "size": list(self.size), "frames": self.frame_count}
        store = ArrayStore(folder, "float32", {"video": self.name, **about})
        known = {name: item for name, item in self.predictions().items() if name not in leave_out}
        placed = {name: in_video(item, view, pixels) for name, item in known.items()}
        ArraySink(store, view, pixels).put(Finished(0, self.frame_count, Predictions(placed)))
        store.finish()
        return store
