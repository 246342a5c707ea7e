"""Rendered clips as the core's types: a Clip and the Predictions that a perfect system would make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fourd_core.data import Cameras, Clip, Maps, Prediction, Predictions, Tracks
from fourd_core.geometry import compose, inverse, transform
from fourd_synth.rendering import Rendered, Window
from fourd_synth.views import Views


@attrs.frozen(eq=False)
class Scene:
    """A batch of rendered clips with everything that is known of them (`b t ...`).

    Attributes:
        slot: the thing that each pixel shows.
        flow, occluded: by direction, to the frame before (0) and the one behind (1) where that is known.
        world_from_cam: float64, in any world.
        xy, visibility, live, at: of the tracks; `at` is in the camera.
    """

    colour: Float[Tensor, "b t 3 h w"]
    depth: Float[Tensor, "b t 1 h w"]
    motion: Float[Tensor, "b t 1 h w"]
    slot: Int64[Tensor, "b t 1 h w"]
    flow: Float[Tensor, "b t d 2 h w"]
    occluded: Float[Tensor, "b t d 1 h w"]
    world_from_cam: Float[Tensor, "b t 4 4"]
    intrinsics: Float[Tensor, "b t 3 3"]
    times: Float[Tensor, "b t"]
    xy: Float[Tensor, "b t n 2"]
    visibility: Float[Tensor, "b t n"]
    live: Bool[Tensor, "b t n"]
    at: Float[Tensor, "b t n 3"]

    @classmethod
    def of(
        cls,
        rendered: Rendered,
        colour: Float[Tensor, "b t 3 h w"],
        views: Views,
        window: Window,
        frames: Tensor,
        tracks: Tracks | None,
        times: Float[Tensor, "b t"],
    ) -> Scene:
        """What was rendered of some frames of views."""
        b, t = frames.shape
        flows = [rendered.flow[direction] for direction in sorted(rendered.flow)]
        focal = views.focal * window.pixels
        intrinsics = torch.zeros(b, t, 3, 3, dtype=focal.dtype, device=focal.device)
        intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal[:, None]
        intrinsics[..., :2, 2] = (window.pixels / 2 - window.corner)[:, None].to(focal.dtype)
        intrinsics[..., 2, 2] = 1
        none = focal.new_zeros(b, t, 0)
        return cls(
            colour=colour,
            depth=rendered.depth,
            motion=rendered.motion,
            slot=rendered.slot,
            flow=torch.stack([flow.flow for flow in flows], 2),
            occluded=torch.stack([flow.occluded for flow in flows], 2),
            world_from_cam=views.world_from_cam.gather(1, frames[..., None, None].expand(b, t, 4, 4)),
            intrinsics=intrinsics,
            times=times,
            xy=none[..., None].expand(b, t, 0, 2) if tracks is None else tracks.xy,
            visibility=none if tracks is None else tracks.visibility,
            live=none.bool() if tracks is None else tracks.live,
            at=none[..., None].expand(b, t, 0, 3) if tracks is None else tracks.tensors()["xyz_camera"],
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Scene:
        """The same with every tensor changed in the same way."""
        tensors: dict[str, Any] = {field.name: change(getattr(self, field.name)) for field in attrs.fields(Scene)}
        return Scene(**tensors)

    def part(self, clip: int) -> Scene:
        """One clip of the batch."""
        return self.map(lambda tensor: tensor[clip : clip + 1])

    @classmethod
    def stack(cls, scenes: Sequence[Scene]) -> Scene:
        """Batches as one."""
        tensors: dict[str, Any] = {
            field.name: torch.cat([getattr(scene, field.name) for scene in scenes]) for field in attrs.fields(cls)
        }
        return cls(**tensors)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(int(getattr(self, field.name).nbytes) for field in attrs.fields(Scene))


def truth_of(scene: Scene, world: Float[Tensor, "b 1 4 4"] | None = None) -> tuple[Clip, Predictions]:
    """The clip, and what is true of it.

    Args:
        world: the pose of the camera that is to be the world; None: the first one's.
    """
    clip = Clip(scene.colour, times=scene.times, intrinsics=scene.intrinsics)
    poses = compose(inverse(scene.world_from_cam[:, :1] if world is None else world), scene.world_from_cam).to(
        scene.depth.dtype
    )
    flow, occluded = scene.flow[:, :, 0].clone(), scene.occluded[:, :, 0].clone()
    flow[:, 0] = occluded[:, 0] = torch.nan
    truth: dict[str, Prediction] = {
        "depth": Maps(scene.depth, kind="depth", unit="m"),
        "flow": Maps(flow, kind="flow", unit="px"),
        "motion": Maps(scene.motion, kind="mask"),
        "occluded": Maps(occluded, kind="mask"),
        "cameras": Cameras(poses, scene.intrinsics, unit="m"),
    }
    if scene.xy.shape[2]:
        xyz = transform(poses[:, :, None], scene.at)
        truth["tracks"] = Tracks(
            scene.xy, scene.visibility, scene.live, scene.at[..., 2], xyz=xyz, xyz_camera=scene.at, unit="m"
        )
    return clip, Predictions(truth)
