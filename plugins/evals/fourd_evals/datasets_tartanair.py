"""TartanAir (version 1): flights through rendered environments, with depth, forward flow and poses.

    <env>/{Easy,Hard}/P000/image_left/000000_left.png
                          /depth_left/000000_left_depth.npy     float32, z in metres; the sky is about 10,000
                          /flow/000000_000001_{flow,mask}.npy   float32 (x, y) to the next frame; mask not 0: not valid
                          /pose_left.txt                        a frame a line: tx ty tz qx qy qz qw, camera to world

Poses are in NED axes: of the camera x is forward, y right, z down. The camera sees 90 degrees across: fx = fy = cx =
width / 2 and cy = height / 2 (320, 320, 320, 240), of pixels whose centres are at +0.5.

Source: Wang et al., TartanAir, IROS 2020; theairlab.org/tartanair-dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import attrs
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.geometry import rigid
from fourd_core.media.formats.rotations import rotation_from_quaternion
from fourd_core.media.layouts import Part
from fourd_evals.annotated import AnnotatedConfig, AnnotatedFrames, AnnotatedSet, Camera, known_depth, pinhole
from fourd_evals.arrays import read_npy
from fourd_evals.roots import Root

NED_FROM_CAM = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
"""OpenCV's axes of a camera (x right, y down, z forward) in the axes of a pose (x forward, y right, z down)."""
FRAME_RATE = 10.0
"""Frames per second; the data set states none."""


class TartanAirSequence(AnnotatedFrames):
    """One flight; the world is that of its poses."""

    def __init__(self, root: Root, name: str, farthest: float) -> None:
        self._frames = root.names(f"{name}/image_left", "_left.png")
        if not self._frames:
            raise MediaError(f"{root.place(name)}/image_left holds no picture 000000_left.png")
        self._farthest = farthest
        has = {"depth": f"{name}/depth_left", "flow": f"{name}/flow", "cameras": f"{name}/pose_left.txt"}
        known = frozenset(truth for truth, file in has.items() if root.has(file))
        _, height, width = root.picture(f"{name}/image_left/{self._frames[0]}").shape
        intrinsics = pinhole(width / 2, width / 2, width / 2, height / 2)
        super().__init__(root.location, name, len(self._frames), (height, width), known, FRAME_RATE, intrinsics)
        self._poses = self._read_poses(root) if "cameras" in known else None

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The left camera's picture."""
        return self.root.picture(f"{self.path}/image_left/{self._frames[index]}")

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """z; NaN in the sky."""
        values = read_npy(self.root, f"{self.path}/depth_left/{self._number(index)}_left_depth.npy")
        return known_depth(torch.from_numpy(values)[None], self._farthest)

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"] | None:
        """Known to the next frame; NaN where the mask says that the flow is not the content's."""
        if to < index:
            return None
        stem = f"{self.path}/flow/{self._number(index)}_{self._number(to)}"
        flow = torch.from_numpy(read_npy(self.root, f"{stem}_flow.npy")).float().movedim(-1, 0)
        masked = torch.from_numpy(read_npy(self.root, f"{stem}_mask.npy")) != 0
        return flow.masked_fill(masked, torch.nan)

    def camera(self, index: int) -> Camera | None:
        """The pose from NED axes, and the pinhole of the data set."""
        assert self._poses is not None and self.intrinsics is not None
        return self._poses[index], self.intrinsics

    def _number(self, index: int) -> str:
        return self._frames[index].removesuffix("_left.png")

    def _read_poses(self, root: Root) -> Float[Tensor, "t 4 4"]:
        place = f"{self.path}/pose_left.txt"
        try:
            rows = torch.tensor([[float(word) for word in line.split()] for line in root.read(place).splitlines()])
        except ValueError as error:
            raise MediaError(f"{root.place(place)} is not a list of numbers: {error}") from error
        if tuple(rows.shape) != (self.frame_count, 7):
            raise MediaError(
                f"{root.place(place)} has numbers of shape {tuple(rows.shape)}, not 7 for each of the "
                f"{self.frame_count} frames"
            )
        rotation = rotation_from_quaternion(rows[:, [6, 3, 4, 5]].double()) @ NED_FROM_CAM
        return rigid(rotation, rows[:, :3].double()).float()


class TartanAir(AnnotatedSet):
    """TartanAir's flights through rendered environments: depth, forward flow, cameras."""

    title = "TartanAir"

    @attrs.frozen(kw_only=True)
    class Config(AnnotatedConfig):
        """Which flights, and what is too far to be known."""

        levels: tuple[Literal["Easy", "Hard"], ...] = ("Easy", "Hard")
        """Slow flights, fast flights, or both."""
        max_depth: float = attrs.field(default=1000.0, validator=attrs.validators.gt(0))
        """Metres from which on depth counts as unknown: the sky is stored as about 10,000."""

    @classmethod
    def example(cls) -> Config:
        """Three flights in memory."""
        from fourd_evals.miniatures_training import tartanair_miniature

        return cls.Config(root=tartanair_miniature())

    def find(self, root: Root) -> Mapping[Part, Sequence[str]]:
        """Every `<env>/<level>/P...` with pictures of the left camera."""
        names = [
            f"{env}/{level}/{flight}"
            for env in root.names()
            for level in self.config.levels
            for flight in root.names(f"{env}/{level}")
            if root.has(f"{env}/{level}/{flight}/image_left")
        ]
        if not names:
            raise root.missing(self.title, [f"<environment>/{level}/P000/image_left" for level in self.config.levels])
        return {"train": names}

    def open(self, root: Root, name: str) -> TartanAirSequence:
        """A flight, its poses read."""
        return TartanAirSequence(root, name, self.config.max_depth)
