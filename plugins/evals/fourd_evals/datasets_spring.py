"""Spring's training part: stereo film in full HD with flow both ways, disparity and cameras; its left pictures.

    train/0001/frame_left/frame_left_0001.png
    train/0001/flow_{FW,BW}_left/flow_FW_left_0001.flo5     to the frame after (1 .. N-1) and before (2 .. N)
    train/0001/disp1_left/disp1_left_0001.dsp5              disparity; depth = fx * 0.065 m / disparity
    train/0001/disp2_{FW,BW}_left/disp2_FW_left_0001.dsp5   disparity of the same point in the other frame
    train/0001/cam_data/{intrinsics,extrinsics}.txt         a line a frame: fx fy cx cy; 16 numbers, world to camera

The maps have twice the frame's rows and columns and hold pixels of the frame; of each 2 x 2 the upper left one is
taken, whose centre lies at (0.25, 0.25) of its pixel. The principal point is taken as it stands: Blender's lies in the
middle of the picture, (960, 540).

What moves is not published; it is derived where the maps allow: a point that flow and the second disparity put
elsewhere in the world than before, by more than `motion_threshold` pixels as seen from its first depth. The sky, which
has no disparity, is not known.

Source: Mehl et al., Spring: a high-resolution high-detail dataset and benchmark, 2023, and the data set's page.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from fourd_core.geometry import intrinsics_matrix, inverse, pixel_centres, transform, unproject
from fourd_core.recipe import Location
from fourd_evals.annotated import Camera
from fourd_evals.evaluation_sets import (
    EvaluationConfig,
    EvaluationFrames,
    EvaluationSet,
    numbers,
    one_pinhole,
    picture_size,
)
from fourd_evals.file_formats import read_dsp5, read_flo5
from fourd_evals.roots import Root

BASELINE = 0.065
"""Metres between the two cameras."""


class SpringSequence(EvaluationFrames):
    """Frames `start .. start + count - 1` of a sequence, counted from 0; `count` none: all of them."""

    def __init__(self, root: Root, key: str, start: int, count: int | None, motion_threshold: float) -> None:
        self._folder = f"train/{key.partition('/')[0]}"
        names = root.names(f"{self._folder}/frame_left", ".png")
        self._last = len(names)
        self._numbers = list(range(1, self._last + 1))[start : None if count is None else start + count]
        self._there = frozenset(root.names(self._folder))
        self._threshold = motion_threshold
        self._cameras = _cameras(root, self._folder) if "cam_data" in self._there else None
        with_depth = "disp1_left" in self._there and self._cameras is not None
        known = {
            "depth": with_depth,
            "flow": bool({"flow_FW_left", "flow_BW_left"} & self._there),
            "motion": with_depth and any(self._has_motion(later) for later in (True, False)),
            "cameras": self._cameras is not None,
        }
        super().__init__(
            root.location,
            key,
            frame_count=len(self._numbers),
            size=picture_size(root, self._file("frame_left", 0, "png")),
            known=frozenset(name for name, is_known in known.items() if is_known),
            frame_rate=24,
            intrinsics=one_pinhole([self.camera(index)[1] for index in range(len(self._numbers)) if self._cameras]),
        )

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        return self.root.picture(self._file("frame_left", index, "png"))

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """As `AnnotatedFrames.depth`; the sky's is not known."""
        return _depth(self._map("disp1_left", index), self.camera(index)[1]).float()

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"] | None:
        """As `AnnotatedFrames.flow`."""
        folder = "flow_FW_left" if to > index else "flow_BW_left"
        return self._map(folder, index) if folder in self._there else None

    def motion(self, index: int) -> Float[Tensor, "1 h w"] | None:
        """As `AnnotatedFrames.motion`: by the frame after, of the last frame by the one before."""
        number = self._numbers[index]
        later = number < self._last and self._has_motion(True)
        if not later and not (number > 1 and self._has_motion(False)):
            return None
        direction, other = ("FW", number + 1) if later else ("BW", number - 1)
        assert self._cameras is not None
        cameras = [(self._cameras.world_from_cam[at - 1], self._cameras.intrinsics[at - 1]) for at in (number, other)]
        stored = self._stored(f"flow_{direction}_left", index)
        doubled, flow = stored.shape[-1] > self.size[1], self._at_pixels(stored).double()
        depths = [
            _depth(self._map(folder, index), intrinsics)[0]
            for folder, (_, intrinsics) in zip(("disp1_left", f"disp2_{direction}_left"), cameras, strict=True)
        ]
        here = pixel_centres(self.size, like=flow) - 0.25 * doubled
        there = here + flow.permute(1, 2, 0)
        points = [
            transform(pose, unproject(xy, depth, intrinsics))
            for xy, depth, (pose, intrinsics) in zip((here, there), depths, cameras, strict=True)
        ]
        moved: Tensor = (points[1] - points[0]).norm(dim=-1) * cameras[0][1][0, 0] / depths[0]
        return (moved > self._threshold).float().where(moved.isfinite(), torch.nan)[None]

    def camera(self, index: int) -> Camera:
        """As `AnnotatedFrames.camera`."""
        assert self._cameras is not None
        at = self._numbers[index] - 1
        return self._cameras.world_from_cam[at], self._cameras.intrinsics[at]

    def _has_motion(self, later: bool) -> bool:
        direction = "FW" if later else "BW"
        return {f"flow_{direction}_left", f"disp2_{direction}_left"} <= self._there

    def _map(self, folder: str, index: int) -> Float[Tensor, "c h w"]:
        return self._at_pixels(self._stored(folder, index))

    def _at_pixels(self, stored: Float[Tensor, "c y x"]) -> Float[Tensor, "c h w"]:
        doubled = tuple(stored.shape[-2:]) == (2 * self.size[0], 2 * self.size[1])
        return stored[:, ::2, ::2] if doubled else stored

    def _stored(self, folder: str, index: int) -> Float[Tensor, "c y x"]:
        flow = folder.startswith("flow")
        with self.root.on_disk(self._file(folder, index, "flo5" if flow else "dsp5")) as path:
            return read_flo5(path) if flow else read_dsp5(path)

    def _file(self, folder: str, index: int, suffix: str) -> str:
        return f"{self._folder}/{folder}/{folder}_{self._numbers[index]:04d}.{suffix}"


class Spring(EvaluationSet):
    """Spring (training part, left camera): depth, flow both ways, cameras, what moves as derived from these."""

    title = "Spring"

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """Which of it is read."""

        clip: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(2)))
        """Take each sequence in clips of so many frames, side by side, and leave out what is left over at its end; L4P
        is measured on clips of 16. None: whole sequences."""
        motion_threshold: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
        """From how many pixels on a point moves."""

    @classmethod
    def example(cls) -> Config:
        """Two sequences of tiny pictures."""
        from fourd_evals.miniatures_evaluation import spring_miniature

        return cls.Config(root=Location(spring_miniature()), held_out=0.5)

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`; clips are called by the number of their first frame."""
        counts = {name: len(root.names(f"train/{name}/frame_left", ".png")) for name in root.names("train")}
        if not any(counts.values()):
            raise root.missing("Spring", ["train/0001/frame_left/frame_left_0001.png"])
        clip = self.config.clip
        if clip is None:
            return [name for name, count in counts.items() if count]
        return [f"{name}/{first:04d}" for name, count in counts.items() for first in range(1, count - clip + 2, clip)]

    def open(self, root: Root, name: str) -> SpringSequence:
        """As `AnnotatedSet.open`."""
        start = int(name.partition("/")[2] or 1) - 1
        return SpringSequence(root, name, start, self.config.clip, self.config.motion_threshold)


def _depth(disparity: Float[Tensor, "1 h w"], intrinsics: Float64[Tensor, "3 3"]) -> Float64[Tensor, "1 h w"]:
    depth = intrinsics[0, 0] * BASELINE / disparity.double()
    return depth.where(disparity > 0, torch.nan)


class Cameras(NamedTuple):
    """Of all frames of a sequence, in order."""

    world_from_cam: Float64[Tensor, "n 4 4"]
    intrinsics: Float64[Tensor, "n 3 3"]


def _cameras(root: Root, folder: str) -> Cameras:
    pinholes = numbers(root, f"{folder}/cam_data/intrinsics.txt")
    poses = numbers(root, f"{folder}/cam_data/extrinsics.txt").view(-1, 4, 4)
    return Cameras(inverse(poses), intrinsics_matrix(pinholes[:, :2], pinholes[:, 2:]))
