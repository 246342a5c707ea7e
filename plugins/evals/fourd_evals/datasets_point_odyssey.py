"""PointOdyssey: long animated videos with depth, cameras, and points that are followed all the way.

    {train,val,test}/<sequence>/rgbs/rgb_00000.jpg
                               /depths/depth_00000.png     16 bits: value / 65535 * 1000 metres
                               /anno.npz                   trajs_2d (t, n, 2), trajs_3d in the world (t, n, 3),
                                                           visibs and valids (t, n), intrinsics (t, 3, 3),
                                                           extrinsics (t, 4, 4)

Extrinsics lead from the world into the camera, OpenCV axes. Version 1.0 has `annotations.npz` with `visibilities`: 1 is
seen, 0 hidden, 2 not valid. A position that is not finite is not valid either. Intrinsics and positions are taken in
continuous pixels, the centre of the top left one at (0.5, 0.5): the principal point is stored as half the width.

Source: Zheng et al., PointOdyssey, ICCV 2023, and the readme of its version 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.data import Tracks
from fourd_core.errors import MediaError
from fourd_core.geometry import inverse
from fourd_core.media.layouts import Part
from fourd_evals.annotated import AnnotatedConfig, AnnotatedFrames, AnnotatedSet, Camera, known_depth
from fourd_evals.arrays import NpzRows
from fourd_evals.roots import Root
from fourd_evals.trajectories import tracks_of_points

METRES = 1000 / 65535
"""Of one step of a depth map."""
FRAME_RATE = 30.0
ANNOTATIONS = ("anno.npz", "annotations.npz")
NEEDED = ("trajs_2d", "trajs_3d", "intrinsics", "extrinsics")


class PointOdysseySequence(AnnotatedFrames):
    """One video; of its points, which take gigabytes, only the frames that are asked for are read."""

    def __init__(self, root: Root, name: str, farthest: float) -> None:
        self._frames = root.names(f"{name}/rgbs", (".jpg", ".png"))
        annotations = root.first([f"{name}/{file}" for file in ANNOTATIONS])
        if not self._frames or annotations is None:
            raise MediaError(f"{root.place(name)} needs rgbs/rgb_00000.jpg and anno.npz")
        self._farthest = farthest
        self._arrays = NpzRows(root, annotations)
        place, shapes = root.place(annotations), self._arrays.shapes
        self._seen = "visibs" if "visibs" in shapes else "visibilities"
        needed = (*NEEDED, self._seen)
        if missing := [key for key in needed if key not in shapes]:
            raise MediaError(f"{place} has no array {missing[0]}; it has {', '.join(shapes)}")
        if short := [key for key in needed if shapes[key][0] < len(self._frames)]:
            raise MediaError(
                f"{place} tells {short[0]} of {shapes[short[0]][0]} frames, and there are {len(self._frames)}"
            )
        known = {"cameras", "tracks"} | ({"depth"} if root.has(f"{name}/depths") else set())
        _, height, width = root.picture(f"{name}/rgbs/{self._frames[0]}").shape
        super().__init__(root.location, name, len(self._frames), (height, width), frozenset(known), FRAME_RATE)

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The rendered frame."""
        return self.root.picture(f"{self.path}/rgbs/{self._frames[index]}")

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """z in steps of 15 mm."""
        number = self._frames[index].rpartition(".")[0].removeprefix("rgb_")
        codes = self.root.grey16(f"{self.path}/depths/depth_{number}.png")
        return known_depth(torch.from_numpy(codes.astype(np.float64) * METRES)[None], self._farthest)

    def camera(self, index: int) -> Camera | None:
        """The pose from the extrinsics; None where these are not finite."""
        intrinsics, extrinsics = self._rows("intrinsics", [index])[0], self._rows("extrinsics", [index])[0]
        if not (intrinsics.isfinite().all() and extrinsics.isfinite().all()):
            return None
        return inverse(extrinsics).float(), intrinsics.float()

    def tracks(self, indices: Sequence[int]) -> Tracks:
        """All points of the sequence."""
        seen = self._rows(self._seen, indices)
        if self._seen == "visibs":
            visible = seen > 0.5
            valid = self._rows("valids", indices) > 0.5 if "valids" in self._arrays.shapes else seen >= 0
        else:
            visible, valid = seen == 1, seen < 2
        return tracks_of_points(
            self._rows("trajs_2d", indices),
            visible,
            valid,
            self._rows("trajs_3d", indices),
            self._rows("extrinsics", indices),
        )

    def _rows(self, key: str, indices: Sequence[int]) -> Float[Tensor, "t ..."]:
        return torch.from_numpy(self._arrays.rows(self.root, key, indices).astype(np.float64))


class PointOdyssey(AnnotatedSet):
    """PointOdyssey's animated people and animals: depth, cameras, long 2D and 3D tracks."""

    title = "PointOdyssey"

    @attrs.frozen(kw_only=True)
    class Config(AnnotatedConfig):
        """Which videos, and what is too far to be known."""

        max_depth: float = attrs.field(default=1000.0, validator=attrs.validators.gt(0))
        """Metres from which on depth counts as unknown; the files hold no more than 1000."""

    @classmethod
    def example(cls) -> Config:
        """Two videos in memory."""
        from fourd_evals.miniatures_training import point_odyssey_miniature

        return cls.Config(root=point_odyssey_miniature())

    def find(self, root: Root) -> Mapping[Part, Sequence[str]]:
        """`train`, and `val` (or where that is missing `test`) as what is held out."""
        folders: dict[Part, tuple[str, ...]] = {"train": ("train",), "held_out": ("val", "test")}
        found: dict[Part, Sequence[str]] = {}
        for part, names in folders.items():
            folder = root.first(names)
            inside = root.names(folder) if folder else []
            sequences = [f"{folder}/{name}" for name in inside if root.has(f"{folder}/{name}/rgbs")]
            if sequences:
                found[part] = sequences
        if not found:
            raise root.missing(self.title, ["train/<sequence>/rgbs", "val/<sequence>/rgbs"])
        return found

    def open(self, root: Root, name: str) -> PointOdysseySequence:
        """A video, the list of its arrays read."""
        return PointOdysseySequence(root, name, self.config.max_depth)
