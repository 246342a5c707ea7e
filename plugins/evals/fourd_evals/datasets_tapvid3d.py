"""TAPVid-3D: points followed through space, in the camera's frame.

    <source>/<name>.npz    source: adt, drivetrack, pstudio
        images_jpeg_bytes  t, a JPEG a frame
        queries_xyt        n 3: x and y in pixels, and the frame in which the point is named
        tracks_XYZ         t n 3, metres in the camera's frame (OpenCV axes)
        visibility         t n
        fx_fy_cx_cy        4
        extrinsics_w2c     t 4 4, where the camera moves and the file's writer kept it

Positions in the picture are the projections of `tracks_XYZ`; with the intrinsics as they stand they are in the pixels
in which the data set states its queries, which are taken for ours.

Source: Koppula et al., TAPVid-3D, 2024, and its readme.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import attrs
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from fourd_core.data import Tracks
from fourd_core.errors import MediaError
from fourd_core.geometry import intrinsics_matrix, inverse, project, transform
from fourd_core.recipe import Location
from fourd_evals.annotated import Camera, root_here
from fourd_evals.arrays import read_npz
from fourd_evals.evaluation_sets import EvaluationConfig, EvaluationFrames, EvaluationSet
from fourd_evals.roots import Root, picture_samples

SOURCES = ("adt", "drivetrack", "pstudio")
NEEDED = ("images_jpeg_bytes", "queries_xyt", "tracks_XYZ", "visibility", "fx_fy_cx_cy")


class TAPVid3DVideo(EvaluationFrames):
    """One video and its points.

    Attributes:
        queries: which point is named where: frame, x, y in pixels.
    """

    queries: Float[Tensor, "n 3"]

    def __init__(self, root: Root, key: str, frame_rate: float) -> None:
        arrays = _arrays(root.location, key, os.getpid())
        missing = [name for name in NEEDED if name not in arrays]
        if missing:
            raise MediaError(f"{root.place(key)}.npz is not a file of TAPVid-3D: it has no {missing[0]}")
        self.location, self.path = root.location, key
        _, height, width = self.picture(0).shape
        self.queries = torch.tensor(arrays["queries_xyt"][:, [2, 0, 1]].astype(np.float32))
        moves = "extrinsics_w2c" in arrays
        focal_centre = torch.from_numpy(arrays["fx_fy_cx_cy"].astype(np.float64))
        super().__init__(
            root.location,
            key,
            frame_count=len(arrays["images_jpeg_bytes"]),
            size=(height, width),
            known=frozenset({"tracks", "cameras"} if moves else {"tracks"}),
            frame_rate=frame_rate,
            intrinsics=intrinsics_matrix(focal_centre[:2], focal_centre[2:]),
        )

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        data = bytes(self._array("images_jpeg_bytes")[index])
        return torch.from_numpy(picture_samples(data, f"frame {index} of {self.path}", "RGB")).permute(2, 0, 1)

    def camera(self, index: int) -> Camera:
        """As `AnnotatedFrames.camera`."""
        assert self.intrinsics is not None
        return inverse(torch.from_numpy(self._array("extrinsics_w2c")[index].astype(np.float64))), self.intrinsics

    def tracks(self, indices: Sequence[int]) -> Tracks:
        """As `AnnotatedFrames.tracks`, seen or not; where a point is behind the camera it has no `xy` (NaN)."""
        indices = list(indices)
        points = torch.tensor(self._array("tracks_XYZ")[indices].astype(np.float64))
        assert self.intrinsics is not None
        in_front = points[..., 2:] > 0
        known = points.isfinite().all(-1)
        visible = torch.tensor(self._array("visibility")[indices].astype(bool)) & known
        world = None
        if "cameras" in self.known:
            poses = torch.stack([self.camera(index)[0] for index in indices])
            world = transform(poses[:, None], points).float()[None]
        return Tracks(
            xy=project(points, self.intrinsics).where(in_front, torch.nan).float()[None],
            visibility=visible.float()[None],
            live=known[None],
            depth=points[..., 2].float()[None],
            xyz_camera=points.float()[None],
            xyz=world,
            unit="m",
        )

    def _array(self, name: str) -> ndarray:
        return _arrays(self.location, self.path, os.getpid())[name]


class TAPVid3D(EvaluationSet):
    """TAPVid-3D (ADT, DriveTrack, Panoptic Studio): points followed in 3D."""

    title = "TAPVid-3D"

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """Which of it is read."""

        sources: tuple[str, ...] = attrs.field(
            default=SOURCES, validator=attrs.validators.deep_iterable(attrs.validators.in_(SOURCES))
        )
        """Which of adt, drivetrack, pstudio; those that are there."""
        frame_rate: float = attrs.field(default=30.0, validator=attrs.validators.gt(0))
        """Frames per second, which the files do not state."""

    @classmethod
    def example(cls) -> Config:
        """Two tiny videos."""
        from fourd_evals.miniatures_tapvid import tapvid3d_miniature

        return cls.Config(root=Location(tapvid3d_miniature()), held_out=0.5)

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`."""
        found = [
            f"{source}/{name.removesuffix('.npz')}"
            for source in self.config.sources
            for name in root.names(source, ".npz")
        ]
        if not found:
            raise root.missing("TAPVid-3D", [f"{source}/<name>.npz" for source in self.config.sources])
        return found

    def open(self, root: Root, name: str) -> TAPVid3DVideo:
        """As `AnnotatedSet.open`."""
        return TAPVid3DVideo(root, name, self.config.frame_rate)


@lru_cache(maxsize=2)
def _arrays(location: str, key: str, _process: int) -> dict[str, ndarray]:
    return read_npz(root_here(location), f"{key}.npz")
