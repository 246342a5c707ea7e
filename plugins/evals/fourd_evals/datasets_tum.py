"""TUM's RGB-D benchmark and Bonn's dynamic scenes, which are laid out in the same way.

    <sequence>/{rgb,depth}/<timestamp>.png    640 x 480; depth is 16 bits, 5000 a metre, 0 not known
    <sequence>/groundtruth.txt                timestamp tx ty tz qx qy qz qw: camera to world

Pictures, depth and poses were taken at times of their own and are brought together by the nearest time within 0.02 s;
depth optionally by its place in the sorted list, as MonST3R's and DepthCrafter's preparations do of Bonn. The published
calibrations count the centre of the top left pixel as (0, 0): half a pixel is added. Lenses are not corrected.

Sources: Sturm et al., A benchmark for the evaluation of RGB-D SLAM systems, 2012, with its tool `associate`; Palazzolo
et al., ReFusion, 2019 (Bonn); the data sets' pages for the calibrations.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.geometry import from_integer_centres
from fourd_core.media.formats.tum import read_tum
from fourd_core.recipe import Location
from fourd_evals.annotated import Camera, pinhole
from fourd_evals.evaluation_sets import EvaluationConfig, EvaluationFrames, EvaluationSet, grey_depth, picture_size
from fourd_evals.roots import Root

STEPS = 5000.0
"""Depth codes per metre."""
TOLERANCE = 0.02
"""Seconds by which two things that belong together may be apart."""
TUM_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
"""fx, fy, cx, cy of the colour cameras as published."""
BONN_CAMERA = (542.822841, 542.576870, 315.593520, 237.756098)
TUM_DYNAMICS = tuple(
    f"rgbd_dataset_freiburg3_{what}_{how}"
    for what in ("sitting", "walking")
    for how in ("halfsphere", "rpy", "static", "xyz")
)
BONN = ("balloon2", "crowd2", "crowd3", "synchronous")
"""The sequences that both protocols share."""
Pairing = Literal["time", "index"]


class RGBDSequence(EvaluationFrames):
    """The frames of a sequence by the names of their files, with the depth and pose that belong to each."""

    def __init__(
        self,
        root: Root,
        key: str,
        colours: Sequence[str],
        depths: Sequence[str | None],
        poses: dict[str, Float64[Tensor, "4 4"]],
        intrinsics: Float[Tensor, "3 3"],
    ) -> None:
        self._colours, self._depths, self._poses = list(colours), list(depths), poses
        known = {"depth": any(depths), "cameras": bool(poses)}
        super().__init__(
            root.location,
            key,
            frame_count=len(self._colours),
            size=picture_size(root, f"{key}/rgb/{self._colours[0]}"),
            known=frozenset(name for name, is_known in known.items() if is_known),
            frame_rate=30,
            intrinsics=intrinsics,
        )

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """Seconds since the first frame, as they were taken."""
        times = torch.tensor([timestamp(self._colours[index]) for index in [0, *indices]], dtype=torch.float64)
        return times[1:] - times[0]

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        return self.root.picture(f"{self.path}/rgb/{self._colours[index]}")

    def depth(self, index: int) -> Float[Tensor, "1 h w"] | None:
        """As `AnnotatedFrames.depth`."""
        name = self._depths[index]
        return None if name is None else grey_depth(self.root, f"{self.path}/depth/{name}", STEPS)

    def camera(self, index: int) -> Camera | None:
        """As `AnnotatedFrames.camera`; not known where no pose is near in time."""
        pose = self._poses.get(self._colours[index])
        assert self.intrinsics is not None
        return None if pose is None else (pose, self.intrinsics)


@attrs.frozen(kw_only=True)
class RGBDConfig(EvaluationConfig):
    """What TUM and Bonn share."""

    pairing: Pairing | None = None
    """How a picture finds its depth: by the nearest time within 0.02 s, or by its index in the sorted list; none: as
    the protocol does."""
    camera: tuple[float, float, float, float] | None = None
    """fx, fy, cx, cy in pixels whose top left centre is (0, 0); none: as published."""


class RGBDSet(EvaluationSet):
    """Sequences of colour, depth and poses, each a folder."""

    prefix: ClassVar[str]
    """What the names of their folders begin with."""

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`."""
        found = [name for name in root.names() if name.startswith(self.prefix) and root.has(f"{name}/rgb")]
        if not found:
            raise root.missing(self.title, [f"{self.prefix}<name>/rgb"])
        return found

    def opened(self, root: Root, name: str, pairing: Pairing, camera: tuple[float, ...]) -> RGBDSequence:
        """A sequence; `chosen` says which of its frames."""
        colours, depths = (by_time(root.names(f"{name}/{kind}", ".png")) for kind in ("rgb", "depth"))
        if not colours:
            raise MediaError(f"the sequence {name} has no pictures: {root.place(f'{name}/rgb')} is empty")
        paired = pair(colours, depths, self.config.pairing or pairing)
        poses = _poses(root, f"{name}/groundtruth.txt", colours)
        frames = self.chosen(colours, poses)
        if not frames:
            raise MediaError(f"the sequence {name} has {len(colours)} pictures, and none that the protocol takes")
        fx, fy, cx, cy = self.config.camera or camera
        intrinsics = from_integer_centres(pinhole(fx, fy, cx, cy))
        return RGBDSequence(root, name, frames, [paired.get(frame) for frame in frames], poses, intrinsics)

    def chosen(self, colours: list[str], poses: dict[str, Float64[Tensor, "4 4"]]) -> list[str]:
        """Which of the pictures are frames."""
        return colours


class TUM(RGBDSet):
    """TUM RGB-D: depth and cameras; its dynamic sequences."""

    title = "TUM RGB-D"
    prefix = "rgbd_dataset_"

    @attrs.frozen(kw_only=True)
    class Config(RGBDConfig):
        """Which of it is read."""

        protocol: Literal["monst3r", "none"] = "monst3r"
        """monst3r: the 8 dynamic sequences of freiburg3; of the pictures with a pose each third one, 90 of them. none:
        all sequences, all pictures."""

    @classmethod
    def example(cls) -> Config:
        """Two sequences of tiny pictures."""
        from fourd_evals.miniatures_evaluation import tum_miniature

        return cls.Config(root=Location(tum_miniature()), held_out=0.5, protocol="none")

    def published(self) -> Sequence[str]:
        """As `EvaluationSet.published`."""
        return TUM_DYNAMICS if self.config.protocol == "monst3r" else ()

    def chosen(self, colours: list[str], poses: dict[str, Float64[Tensor, "4 4"]]) -> list[str]:
        """As `RGBDSet.chosen`."""
        if self.config.protocol == "none":
            return colours
        return [name for name in colours if name in poses][::3][:90]

    def open(self, root: Root, name: str) -> RGBDSequence:
        """As `AnnotatedSet.open`."""
        series = name.removeprefix(self.prefix).partition("_")[0]
        camera = self.config.camera or TUM_CAMERAS.get(series)
        if camera is None:
            raise MediaError(f"the camera of {name} is not known: set camera = [fx, fy, cx, cy]")
        return self.opened(root, name, "time", camera)


class Bonn(RGBDSet):
    """Bonn RGB-D dynamic: depth and cameras."""

    title = "Bonn RGB-D"
    prefix = "rgbd_bonn_"

    @attrs.frozen(kw_only=True)
    class Config(RGBDConfig):
        """Which of it is read."""

        protocol: Literal["depthcrafter", "monst3r", "none"] = "depthcrafter"
        """depthcrafter: 5 sequences, person_tracking among them, depth up to 10 m; monst3r: 5 with person_tracking2,
        up to 70 m; both take the pictures 30 .. 139 of the sorted list and the depth at the same index. none: all
        sequences, all pictures, depth by time."""

    @classmethod
    def example(cls) -> Config:
        """Two sequences of tiny pictures."""
        from fourd_evals.miniatures_evaluation import bonn_miniature

        return cls.Config(root=Location(bonn_miniature()), held_out=0.5, protocol="none")

    def published(self) -> Sequence[str]:
        """As `EvaluationSet.published`."""
        person = {"depthcrafter": "person_tracking", "monst3r": "person_tracking2"}.get(self.config.protocol)
        return () if person is None else [f"{self.prefix}{name}" for name in sorted([*BONN, person])]

    def chosen(self, colours: list[str], poses: dict[str, Float64[Tensor, "4 4"]]) -> list[str]:
        """As `RGBDSet.chosen`."""
        return colours if self.config.protocol == "none" else colours[30:140]

    def open(self, root: Root, name: str) -> RGBDSequence:
        """As `AnnotatedSet.open`."""
        protocol = self.config.protocol
        video = self.opened(root, name, "time" if protocol == "none" else "index", BONN_CAMERA)
        video.depth_cap = {"depthcrafter": 10.0, "monst3r": 70.0, "none": None}[protocol]
        return video


def timestamp(name: str) -> float:
    """Seconds, by the name of a file.

    Raises:
        MediaError: it is no number.
    """
    try:
        return float(name.removesuffix(".png"))
    except ValueError:
        raise MediaError(f"the picture {name} is not called by its time, such as 1311868164.363181.png") from None


def by_time(names: Sequence[str]) -> list[str]:
    """Files in the order of their times: 5.1 after 5.09, which as names or whole numbers would be before."""
    return sorted(names, key=timestamp)


def pair(colours: Sequence[str], depths: Sequence[str], pairing: Pairing) -> dict[str, str]:
    """The depth file of each picture that has one."""
    if pairing == "index":
        return dict(zip(colours, depths, strict=False))
    pairs = associate([timestamp(name) for name in colours], [timestamp(name) for name in depths])
    return {colours[i]: depths[j] for i, j in pairs}


def associate(first: Sequence[float], second: Sequence[float], tolerance: float = TOLERANCE) -> list[tuple[int, int]]:
    """Which of two sorted lists of times belong together: the nearest pair first, each time once, less than `tolerance`
    seconds apart; in the order of the first list.

    Source: the benchmark's tool `associate`.
    """
    candidates = [
        (abs(time - second[j]), i, j)
        for i, time in enumerate(first)
        for j in range(bisect_left(second, time - tolerance), bisect_right(second, time + tolerance))
        if abs(time - second[j]) < tolerance
    ]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in sorted(candidates):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return sorted(pairs.items())


def _poses(root: Root, name: str, colours: Sequence[str]) -> dict[str, Float64[Tensor, "4 4"]]:
    """The camera's pose by the picture that was taken near its time; none where there is no file."""
    if not root.has(name):
        return {}
    with root.on_disk(name) as path:
        times, poses = read_tum(path)
    order = times.argsort()
    pairs = associate([timestamp(colour) for colour in colours], times[order].tolist())
    return {colours[i]: poses[order[j]] for i, j in pairs}
