"""The smallest scene with all ground truth, and the smallest system that learns from it; for contract tests.

A textured square slides before a textured plane, and the camera past both of them, without turning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from fourd_dpt3d.camera_rays import CameraRays
from fourd_dpt3d.dense3d import Depth3D, Flow3D, Motion3D
from fourd_sam_sparse.head import SamTrack
from fourd_sam_sparse.memory import TrackMemory
from fourd_videomae.backbone import VideoMAE
from fourd_videomae.sizes import Size
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fourd_core.data import Cameras, Clip, Maps, Predictions, Tracks
from fourd_core.geometry import intrinsics_matrix, pixel_centres, rigid
from fourd_core.interfaces import TRUTHS, AnnotatedVideo, Dataset, Split, Video
from fourd_core.media.views import View, ViewConfig
from fourd_core.system import System
from fourd_core.truth import seen

PIXELS = 32
PLANE, SQUARE = 4.0, 2.0
"""Depths, in metres."""
HALF = 0.35
"""Half of the square's side, in metres."""
HELD_OUT = 2**40
"""Number of the first held-out scene."""


@attrs.frozen(eq=False)
class Scene:
    """Scenes by number, at any times.

    Attributes:
        camera, square: where they are at time 0, and by how much they move from frame to frame (x, y).
        waves: frequencies of the textures, of the plane and the square, for each colour.
    """

    camera: Float[Tensor, "b 2 2"]
    square: Float[Tensor, "b 2 2"]
    waves: Float[Tensor, "b 2 3 2"]

    @classmethod
    def of(cls, numbers: Int[Tensor, " b"]) -> Scene:
        """The scenes of these numbers, each from a generator of its own."""
        rows = torch.stack(
            [torch.rand(20, generator=torch.Generator().manual_seed(n)) for n in numbers.tolist()]
        )  # fmt: skip
        place, speed = rows[:, :4] - 0.5, (rows[:, 4:8] - 0.5) * 0.2
        both = torch.stack([place.unflatten(1, (2, 2)), speed.unflatten(1, (2, 2))], 2)
        return cls(both[:, 0], both[:, 1], (2 + 4 * rows[:, 8:]).reshape(-1, 2, 3, 2))

    @staticmethod
    def at(path: Float[Tensor, "b 2 2"], times: Float[Tensor, " t"]) -> Float[Tensor, "b t 2"]:
        """Where something is at these times."""
        return path[:, None, 0] + times[:, None] * path[:, None, 1]

    def colours(self, which: int, places: Float[Tensor, "b t *n 2"]) -> Float[Tensor, "b t *n 3"]:
        """The texture of the plane (0) or the square (1) at places on it."""
        waves = self.waves[:, which].reshape(len(places), *[1] * (places.ndim - 2), 3, 2)
        return 0.5 + 0.25 * (waves * places[..., None, :]).sin().sum(-1)

    def on_square(self, xy: Float[Tensor, "b t *n 2"], times: Float[Tensor, " t"]) -> Bool[Tensor, "b t *n"]:
        """Whether pixel positions show the square."""
        away = self.places(xy, times, SQUARE) - _wide(self.at(self.square, times), xy)
        return (away.abs() < HALF).all(-1)

    def places(
        self, xy: Float[Tensor, "b t *n 2"], times: Float[Tensor, " t"], depth: float
    ) -> Float[Tensor, "b t *n 2"]:
        """The x and y in the world of what pixel positions show, were it so deep."""
        return _wide(self.at(self.camera, times), xy) + (xy - PIXELS / 2) / PIXELS * depth

    def frames(self, times: Float[Tensor, " t"]) -> Float[Tensor, "b t 3 h w"]:
        """The pictures."""
        xy = self._pixels(times)
        own = self.places(xy, times, SQUARE) - _wide(self.at(self.square, times), xy)
        before = self.on_square(xy, times)[..., None]
        shown = torch.where(before, self.colours(1, own), self.colours(0, self.places(xy, times, PLANE)))
        return shown.movedim(-1, 2)

    def truth(self, times: Float[Tensor, " t"], points: int) -> Predictions:
        """All that there is to know; half of the points are on the square, which is in front of the plane."""
        on = self.on_square(self._pixels(times), times)[:, :, None]
        b, t = on.shape[:2]
        depth = torch.where(on, SQUARE, PLANE)
        gap = times.diff(prepend=times[:1])
        still = -self.camera[:, 1, :, None, None] / PLANE
        moving = (self.square[:, 1] - self.camera[:, 1])[:, :, None, None] / SQUARE
        flow = -PIXELS * gap.view(t, 1, 1, 1) * torch.where(on, moving[:, None], still[:, None])
        flow = flow.where((gap.abs() == 1).view(t, 1, 1, 1), torch.nan)
        centres = torch.cat([self.at(self.camera, times), self.camera.new_zeros(b, t, 1)], -1)
        matrix = intrinsics_matrix(torch.full((2,), float(PIXELS)), torch.full((2,), PIXELS / 2))
        return Predictions(
            {
                "depth": Maps(depth, kind="depth", unit="m"),
                "flow": Maps(flow, kind="flow", unit="px"),
                "motion": Maps(on.float(), kind="mask"),
                "cameras": Cameras(
                    rigid(torch.eye(3).expand(b, t, 3, 3), centres), matrix.expand(b, t, 3, 3), unit="m"
                ),
                "tracks": self._tracks(times, points),
            }
        )

    def _tracks(self, times: Float[Tensor, " t"], points: int) -> Tracks:
        spread = torch.stack(torch.meshgrid(*[torch.linspace(-0.9, 0.9, 8)] * 2, indexing="xy"), -1).flatten(0, 1)
        spread = spread[torch.arange(points) * 37 % 64]
        mine = torch.arange(points) % 2 == 1
        square, camera = self.at(self.square, times)[:, :, None], self.at(self.camera, times)[:, :, None]
        world = torch.where(mine[:, None], square + HALF * spread, PLANE / 2 * spread)
        depth = torch.where(mine, SQUARE, PLANE).expand(*world.shape[:3])
        xy = PIXELS / 2 + PIXELS * (world - camera) / depth[..., None]
        inside = ((xy >= 0) & (xy < PIXELS)).all(-1)
        seen = inside & (mine | ~self.on_square(xy, times))
        return Tracks(xy, seen.float(), torch.ones_like(seen), depth, unit="m")

    def _pixels(self, times: Float[Tensor, " t"]) -> Float[Tensor, "b t h w 2"]:
        return pixel_centres((PIXELS, PIXELS)).expand(len(self.camera), len(times), -1, -1, -1)


def _wide(places: Float[Tensor, "b t 2"], like: Tensor) -> Tensor:
    return places.reshape(*places.shape[:2], *[1] * (like.ndim - 3), 2)


class Square(AnnotatedVideo):
    """A scene as a video of 24 frames."""

    size, frame_count, known = (PIXELS, PIXELS), 24, frozenset(TRUTHS)

    def __init__(self, number: int, points: int = 16) -> None:
        self.name = self.key = f"square {number}"
        self.scene, self.points = Scene.of(torch.tensor([number])), points

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """The pictures of these frames."""
        return (self.scene.frames(_times(indices))[0] * 255).round().to(torch.uint8)

    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        """25 frames a second."""
        return torch.tensor(list(indices), dtype=torch.float64) / 25

    def truth(self, indices: Sequence[int]) -> Predictions:
        """All that there is to know about these frames."""
        return self.scene.truth(_times(indices), self.points)


class AnnotatedSquares(Dataset):
    """Two scenes to learn from and two others, as videos."""

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self, config: Config | None = None) -> None:
        self.view = ViewConfig(view="resize", pixels=PIXELS)

    def videos(self, split: Split) -> Sequence[Video]:
        """Those of a split."""
        train, held_out = [Square(n) for n in (0, 1)], [Square(HELD_OUT + n) for n in (0, 1)]
        return {"all": train + held_out, "train": train, "held_out": held_out}[split]


class GeneratedSquares(AnnotatedSquares):
    """Scenes that are made when they are asked for."""

    def generate(
        self, split: Split, numbers: Int[Tensor, " b"], frames: int, crop: int | None, tracks: int, device: torch.device
    ) -> tuple[Clip, Predictions]:
        """The first frames of the scenes of these numbers; a crop is the middle."""
        scene, times = Scene.of(numbers + (HELD_OUT if split == "held_out" else 0)), torch.arange(frames).float()
        pictures, truth = scene.frames(times), scene.truth(times, tracks)
        if crop is not None:
            edge = (PIXELS - crop) // 2
            view = View((PIXELS, PIXELS), (PIXELS, PIXELS), (crop, crop), (edge, edge))
            pictures, truth = view.apply(pictures), seen(truth, view)
        if not tracks:
            truth = Predictions({name: part for name, part in truth.items() if name != "tracks"})
        moved = Predictions({name: part.map(lambda tensor: tensor.to(device)) for name, part in truth.items()})
        return Clip(pictures.to(device), intrinsics=moved.cameras.intrinsics), moved


def _times(indices: Sequence[int]) -> Float[Tensor, " t"]:
    return torch.tensor(list(indices)).float()


def small_system(**parts: Any) -> System:
    """A small video transformer with all of L4P's heads and the memory of tracks; random weights.

    Args:
        parts: keys of the backbone's Config, instead of its own.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        size = Size(embed_dim=16, depth=5, heads=2, patch=(2, 8, 8))
        backbone = VideoMAE(VideoMAE.Config(**{"size": size, **parts}))
        spec = backbone.spec
        heads = {
            "depth": Depth3D(Depth3D.example(), spec),
            "flow": Flow3D(Flow3D.example(), spec),
            "motion": Motion3D(Motion3D.example(), spec),
            "cameras": CameraRays(CameraRays.example(), spec),
            "track": SamTrack(SamTrack.example(), spec),
        }
        memories = {"track": TrackMemory(TrackMemory.Config(), spec)}
    return System(backbone, heads, memories)
