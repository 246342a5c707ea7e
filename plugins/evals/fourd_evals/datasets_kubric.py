"""Kubric's MOVi data sets: falling and resting objects, with everything known.

What is stored, and what becomes of it here:

    depth      the distance to the camera's centre, becomes z along the axis
    flow       (row, column) in 16 bits over a stated range, becomes (x, y) in pixels; `backward_flow` is the motion
               from the frame before to this one in the direction of time (google-research/kubric#152), so the flow to
               the frame before is its negative
    camera     looks along -z with y up (Blender), becomes OpenCV's; the principal point is the middle of the frame
    poses      of the instances, quaternions (w, x, y, z): the motion mask is 1 where the body that a pixel shows moves
               between the frame and the one before; tracks are pixels that go with their body

Source: Greff et al., Kubric, CVPR 2022; masks and tracks as L4P's supplement describes (section 2, Kubric).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.lib import format as npy
from torch import Tensor

from fourd_core.data import Tracks
from fourd_core.errors import MediaError
from fourd_core.geometry import directions, pixel_centres, rigid
from fourd_core.interfaces import AnnotatedVideo
from fourd_core.media.formats.rotations import rotation_from_quaternion
from fourd_core.media.layouts import Part
from fourd_evals.annotated import AnnotatedConfig, AnnotatedFrames, AnnotatedSet, Camera, known_depth, pinhole
from fourd_evals.kubric_forms import KubricScene, RawScene, RecordScene, record_counts, split_of
from fourd_evals.plain_pickle import read_plain_pickle
from fourd_evals.rigid_scenes import moving, tracks_between
from fourd_evals.roots import Root

CAM_AXES = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
"""OpenCV's axes of a camera in Blender's."""
RECORDS = ".tfrecord-"
COTRACKER_RATE = 12.0


class KubricSequence(AnnotatedFrames):
    """One scene with all that is known; the world is Kubric's, in metres, z up."""

    def __init__(self, scene: KubricScene, config: Kubric.Config) -> None:
        self._scene, self._config = scene, config
        height, width = scene.size
        intrinsics = pinhole(scene.focal * width, scene.focal * width, width / 2, height / 2)
        known = frozenset({"depth", "flow", "motion", "cameras", "tracks"})
        super().__init__(scene.location, scene.name, scene.frame_count, scene.size, known, scene.frame_rate, intrinsics)
        self._intrinsics = intrinsics.double()
        positions, quaternions = scene.camera
        self._world_from_cam = rigid(rotation_from_quaternion(quaternions) * CAM_AXES, positions)
        bodies = rigid(rotation_from_quaternion(scene.bodies[1]), scene.bodies[0])
        background = torch.eye(4, dtype=torch.float64).expand(1, scene.frame_count, 4, 4)
        self._bodies = torch.cat([background, bodies]).transpose(0, 1)
        self._moving = moving(bodies, scene.radius, config.still)

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The rendered frame."""
        return self._scene.picture(index)

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """z, from the distance along each pixel's ray."""
        return self._depth(index).float()

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"]:
        """In both directions."""
        if to > index:
            return self._scene.flow("forward_flow", index).flip(0).float()
        return -self._scene.flow("backward_flow", index).flip(0).float()

    def motion(self, index: int) -> Float[Tensor, "1 h w"]:
        """1 where the pixel's body moves."""
        moves = torch.cat([torch.zeros(1, dtype=torch.bool), self._moving[:, index]])
        return moves[self._ids(index)].float()[None]

    def camera(self, index: int) -> Camera:
        """The pose in OpenCV's axes."""
        return self._world_from_cam[index].float(), self._intrinsics.float()

    def tracks(self, indices: Sequence[int]) -> Tracks:
        """Points at random pixels of every frame of the scene, the same ones whichever frames are asked for."""
        frames = range(self.frame_count)
        depths = torch.stack([self._depth(frame)[0] for frame in frames])
        ids = torch.stack([self._ids(frame) for frame in frames])
        points = [self._points(frame, depth) for frame, depth in zip(frames, depths, strict=True)]
        tracks = tracks_between(
            frames,
            points,
            depths,
            ids,
            self._world_from_cam,
            self._bodies,
            self._intrinsics,
            self._config.visibility_tolerance,
        )
        return tracks.map(lambda tensor: tensor[:, list(indices)])

    def _points(self, frame: int, depth: Float[Tensor, "h w"]) -> Int64[Tensor, " n"]:
        """Pixels whose depth is known; which ones depends on the scene's name and the frame alone."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.path} {frame}".encode()))
        order = torch.randperm(depth.numel(), generator=generator)
        known = order[depth.flatten()[order].isfinite()]
        return known[: self._config.tracks_per_frame]

    def _depth(self, index: int) -> Float[Tensor, "1 h w"]:
        rays = directions(pixel_centres(self.size, like=self._intrinsics), self._intrinsics)
        z: Tensor = self._scene.distance(index) / rays.norm(dim=-1)
        return z.where(known_depth(z, self._config.max_depth).isfinite(), torch.nan)[None]

    def _ids(self, index: int) -> Int64[Tensor, "h w"]:
        ids = self._scene.segmentation(index)
        if int(ids.max()) >= self._bodies.shape[1]:
            raise MediaError(
                f"the segmentation of frame {index} of {self.name} names instance {int(ids.max())}, and there are "
                f"{self._bodies.shape[1] - 1}"
            )
        return ids


class ExportedTracks(AnnotatedFrames):
    """A scene of CoTracker's export: frames, and points with `visibility` True where they are hidden."""

    def __init__(self, root: Root, name: str) -> None:
        folder = f"{name}/frames"
        self._frames = root.names(folder, (".png", ".jpg", ".jpeg"))
        place = f"{name}/{name.rpartition('/')[2]}.npy"
        stored = _read_dict(root, place)
        try:
            xy, hidden = (torch.from_numpy(np.array(stored[key])) for key in ("coords", "visibility"))
        except (KeyError, TypeError) as error:
            raise MediaError(f"{root.place(place)} lacks the arrays coords and visibility: {error!r}") from error
        if not self._frames or xy.shape != (*hidden.shape, 2) or xy.shape[1] != len(self._frames):
            raise MediaError(
                f"{root.place(place)} has coords {tuple(xy.shape)} and visibility {tuple(hidden.shape)} (points, "
                f"frames), and {root.place(folder)} has {len(self._frames)} pictures"
            )
        self._xy, self._visible = xy.float().transpose(0, 1), ~hidden.bool().transpose(0, 1)
        _, height, width = root.picture(f"{folder}/{self._frames[0]}").shape
        super().__init__(root.location, name, len(self._frames), (height, width), frozenset({"tracks"}), COTRACKER_RATE)

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The exported frame."""
        return self.root.picture(f"{self.path}/frames/{self._frames[index]}")

    def tracks(self, indices: Sequence[int]) -> Tracks:
        """All points, without depth; positions are taken in continuous pixels, as TAP-Vid's."""
        xy, visible = self._xy[list(indices)], self._visible[list(indices)]
        live = xy.isfinite().all(-1)
        return Tracks(xy.where(live[..., None], 0.0)[None], (visible & live).float()[None], live[None], unit="m")


def _read_dict(root: Root, name: str) -> dict[str, object]:
    """The dict in a `.npy` file of one object, which is a pickle: opened without running what it names."""
    with root.open(name) as file:
        try:
            version = npy.read_magic(file)
            (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
        except ValueError as error:
            raise MediaError(f"{root.place(name)} is not a file of NumPy: {error}") from error
        stored = read_plain_pickle(file, root.place(name))
    found = stored.item() if hasattr(stored, "item") else stored
    if not isinstance(found, dict):
        raise MediaError(f"{root.place(name)} does not hold a dict of arrays")
    return found


class Kubric(AnnotatedSet):
    """Kubric's MOVi scenes with all that is known of them: TFDS records, raw scenes, or CoTracker's export."""

    title = "Kubric"

    @attrs.frozen(kw_only=True)
    class Config(AnnotatedConfig):
        """Which scenes, and how masks and tracks are made of them."""

        max_depth: float = attrs.field(default=1000.0, validator=attrs.validators.gt(0))
        """Metres from which on depth counts as unknown."""
        still: float = attrs.field(default=0.002, validator=attrs.validators.ge(0))
        """Metres that a point of a body may go from one frame to the next and still count as resting (the paper states
        no number)."""
        tracks_per_frame: int = attrs.field(default=256, validator=attrs.validators.ge(1))
        """Points named in each frame of a scene; L4P takes 8,000 to 12,000 for a scene of 24 frames."""
        visibility_tolerance: float = attrs.field(default=0.02, validator=attrs.validators.ge(0))
        """A point counts as seen where it is no more than this share of its depth behind what its pixel shows."""

    @classmethod
    def example(cls) -> Config:
        """Three scenes in memory."""
        from fourd_evals.miniatures_kubric import kubric_raw_miniature

        return cls.Config(root=kubric_raw_miniature(), held_out=0.4)

    def find(self, root: Root) -> Mapping[Part, Sequence[str]]:
        """Records, where there are some; else folders of raw scenes or of CoTracker's export."""
        records = [name for name in root.names() if RECORDS in name]
        if records:
            return _records(root, records)
        names = [name for name in root.names() if root.has(f"{name}/metadata.json") or root.has(f"{name}/{name}.npy")]
        if not names:
            looked_for = ["movi_e-train.tfrecord-00000-of-01024", "<scene>/metadata.json", "<scene>/<scene>.npy"]
            raise root.missing(self.title, looked_for)
        return {"train": names}

    def open(self, root: Root, name: str) -> AnnotatedVideo:
        """A scene, with its cameras and bodies."""
        if RECORDS in name:
            return KubricSequence(RecordScene(root, name), self.config)
        if root.has(f"{name}/metadata.json"):
            return KubricSequence(RawScene(root, name), self.config)
        return ExportedTracks(root, name)


def _records(root: Root, files: list[str]) -> Mapping[Part, Sequence[str]]:
    """Examples by split; `validation`, or where that is missing `test`, is held out."""
    splits: dict[str, list[str]] = {}
    for file, count in zip(files, record_counts(root, files), strict=True):
        splits.setdefault(split_of(file), []).extend(f"{file}/{number}" for number in range(count))
    found: dict[Part, Sequence[str]] = {"train": splits.get("train", [])}
    found["held_out"] = splits.get("validation", []) or splits.get("test", [])
    return {part: names for part, names in found.items() if names}
