"""DynamicReplica: animated people and animals in scanned rooms, with depth, flow, cameras and tracks.

    <split>/frame_annotations_<split>.jgz      a gzipped JSON list, one entry a frame and camera: sequence_name,
                                               frame_number, camera_name, and the paths within <split> of what follows
    image                                      a picture
    depth                                      PNG of 16 bits that are the bits of a float16: z in metres
    flow_forward, flow_backward                PNG like depth, twice as wide as the frame: x on the left, y on the right
    flow_forward_mask, flow_backward_mask      PNG of 8 bits, 0 where the flow does not hold
    trajectories                               a torch file: traj_2d (n, 3) x, y and depth; traj_3d_world (n, 3);
                                               verts_inds_vis (n,), the same points in every frame

Cameras are PyTorch3D's: row vectors, `x_cam = x_world R + T`, x to the left, y up; focal length and principal point in
NDC. Licence of the data: CC BY-NC 4.0. The coding of the flow is that of readers which others have published; no file
was at hand to look at.

Source: Karaev et al., DynamicStereo, CVPR 2023, and the readme of its repository.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import attrs
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.data import Tracks
from fourd_core.errors import MediaError
from fourd_core.geometry import inverse, rigid
from fourd_core.media.layouts import Part
from fourd_evals.annotated import (
    AnnotatedConfig,
    AnnotatedFrames,
    AnnotatedSet,
    Camera,
    known_depth,
    pinhole,
    root_here,
)
from fourd_evals.roots import Root
from fourd_evals.trajectories import tracks_of_points

FRAME_RATE = 30.0
FLIP = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
"""PyTorch3D's axes of a camera (x left, y up, z forward) in OpenCV's."""
SPLITS: dict[Part, tuple[str, ...]] = {"train": ("train",), "held_out": ("valid", "val", "test")}
Frame = dict[str, Any]


@lru_cache(maxsize=4)
def read_annotations(location: str, split: str) -> dict[str, list[Frame]]:
    """The frames of each sequence and camera (`<sequence>/<camera>`) of a split, in order.

    Raises:
        MediaError: the list is missing or damaged.
    """
    root, name = root_here(location), f"{split}/frame_annotations_{split}.jgz"
    try:
        entries = json.loads(gzip.decompress(root.read(name)))
        sequences: dict[str, list[Frame]] = {}
        for entry in entries:
            sequences.setdefault(f"{entry['sequence_name']}/{entry['camera_name']}", []).append(entry)
        for frames in sequences.values():
            frames.sort(key=lambda entry: int(entry["frame_number"]))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise MediaError(f"{root.place(name)} is not a gzipped list of frames: {error!r}") from error
    return sequences


class DynamicReplicaSequence(AnnotatedFrames):
    """What one camera of the stereo pair saw of one scene."""

    def __init__(self, root: Root, name: str, frames: list[Frame], farthest: float) -> None:
        self._split, self._frames, self._farthest = name.partition("/")[0], frames, farthest
        first = frames[0]
        known = {truth for truth, field in (("depth", "depth"), ("tracks", "trajectories")) if _path(first, field)}
        if any(_path(frame, field) for frame in frames[:2] for field in ("flow_forward", "flow_backward")):
            known.add("flow")
        if first.get("viewpoint"):
            known.add("cameras")
        height, width = (int(side) for side in first["image"]["size"])
        super().__init__(root.location, name, len(frames), (height, width), frozenset(known), FRAME_RATE)

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The rendered frame."""
        return self.root.picture(self._place(index, "image"))

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """z from the bits of float16."""
        return known_depth(self._float16(self._place(index, "depth"))[None], self._farthest)

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"] | None:
        """In both directions, NaN where the mask says that it does not hold."""
        field = "flow_forward" if to > index else "flow_backward"
        if not _path(self._frames[index], field):
            return None
        both = self._float16(self._place(index, field))
        flow = torch.stack(both.chunk(2, dim=1)).float()
        if _path(self._frames[index], f"{field}_mask"):
            valid = self.root.label_map(self._place(index, f"{field}_mask")) > 0
            flow = flow.where(valid, torch.nan)
        return flow

    def camera(self, index: int) -> Camera:
        """The pose and the pinhole from PyTorch3D's axes."""
        return inverse(self._cam_from_world(index)).float(), self._intrinsics(index)

    def tracks(self, indices: Sequence[int]) -> Tracks:
        """All points of the sequence."""
        files = [self._trajectories(index) for index in indices]
        xy, world, visible = (
            torch.stack([file[key] for file in files]) for key in ("traj_2d", "traj_3d_world", "verts_inds_vis")
        )
        poses = torch.stack([self._cam_from_world(index) for index in indices])
        visible = visible.bool()
        return tracks_of_points(xy[..., :2].double(), visible, torch.ones_like(visible), world.double(), poses)

    def _place(self, index: int, field: str) -> str:
        path = str(_path(self._frames[index], field))
        if ".." in path.split("/"):
            raise MediaError(f"frame {index} of {self.name} names a file outside of the data set: {path}")
        return f"{self._split}/{path}"

    def _float16(self, place: str) -> Float[Tensor, "h w"]:
        return torch.from_numpy(self.root.grey16(place).view(np.float16).astype(np.float32))

    def _cam_from_world(self, index: int) -> Float[Tensor, "4 4"]:
        viewpoint = self._frames[index]["viewpoint"]
        rotation, translation = (torch.tensor(viewpoint[key], dtype=torch.float64) for key in ("R", "T"))
        return rigid(FLIP[:, None] * rotation.mT, FLIP * translation)

    def _intrinsics(self, index: int) -> Float[Tensor, "3 3"]:
        viewpoint = self._frames[index]["viewpoint"]
        height, width = self.size
        # Of NDC with x to the left and y up: one is half the frame, or half its shorter side.
        isotropic = "isotropic" in str(viewpoint.get("intrinsics_format", "")).lower()
        half = (min(height, width) / 2,) * 2 if isotropic else (width / 2, height / 2)
        (fx, fy), (px, py) = viewpoint["focal_length"], viewpoint["principal_point"]
        return pinhole(fx * half[0], fy * half[1], width / 2 - px * half[0], height / 2 - py * half[1])

    def _trajectories(self, index: int) -> dict[str, Tensor]:
        place = self._place(index, "trajectories")
        try:
            found: dict[str, Tensor] = torch.load(
                io.BytesIO(self.root.read(place)), map_location="cpu", weights_only=True
            )
            missing = [key for key in ("traj_2d", "traj_3d_world", "verts_inds_vis") if key not in found]
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
            raise MediaError(f"{self.root.place(place)} is not a torch file of tensors alone: {error}") from error
        if missing:
            raise MediaError(f"{self.root.place(place)} has no tensor {missing[0]}")
        return found


def _path(frame: Frame, field: str) -> str | None:
    """Where a frame's file of a kind is, if it has one."""
    entry = frame.get(field)
    path = entry.get("path") if isinstance(entry, dict) else entry
    return str(path) if path else None


class DynamicReplica(AnnotatedSet):
    """DynamicReplica's animated scenes: depth, flow both ways, cameras, tracks."""

    title = "DynamicReplica"

    @attrs.frozen(kw_only=True)
    class Config(AnnotatedConfig):
        """Which cameras, and what is too far to be known."""

        cameras: tuple[Literal["left", "right"], ...] = ("left",)
        """Of the stereo pair; only the left one has tracks."""
        max_depth: float = attrs.field(default=1000.0, validator=attrs.validators.gt(0))
        """Metres from which on depth counts as unknown."""

    @classmethod
    def example(cls) -> Config:
        """Two scenes in memory."""
        from fourd_evals.miniatures_training import dynamic_replica_miniature

        return cls.Config(root=dynamic_replica_miniature())

    def find(self, root: Root) -> Mapping[Part, Sequence[str]]:
        """`train`, and `valid` (or where that is missing `test`) as what is held out."""
        found: dict[Part, Sequence[str]] = {}
        for part, splits in SPLITS.items():
            split = next((name for name in splits if root.has(f"{name}/frame_annotations_{name}.jgz")), None)
            names = read_annotations(root.location, split) if split else {}
            chosen = [f"{split}/{name}" for name in sorted(names) if name.rpartition("/")[2] in self.config.cameras]
            if chosen:
                found[part] = chosen
        if not found:
            raise root.missing(self.title, ["train/frame_annotations_train.jgz", "valid/frame_annotations_valid.jgz"])
        return found

    def open(self, root: Root, name: str) -> DynamicReplicaSequence:
        """What one camera saw."""
        split, _, sequence = name.partition("/")
        return DynamicReplicaSequence(
            root, name, read_annotations(root.location, split)[sequence], self.config.max_depth
        )
