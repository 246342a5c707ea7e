"""KITTI: depth of drives as accumulated laser scans, and flow between two pictures.

Depth: the annotated depth maps beside the raw recordings.

    data_depth_annotated/val/<drive>_sync/proj_depth/groundtruth/image_02/0000000005.png   z * 256 m, 0 not known
    raw/<date>/<drive>_sync/image_02/data/0000000005.png
    raw/<date>/calib_cam_to_cam.txt                                                        P_rect_02

Flow: the benchmarks of 2015 and 2012.

    training/image_2/000000_{10,11}.png (2012: colored_0)
    training/{flow_occ,flow_noc}/000000_10.png      from _10 to _11, KITTI's flow picture
    training/obj_map/000000_10.png                  2015: ids of the vehicles that move, 0 the rest
    training/calib_cam_to_cam/000000.txt            P_rect_02 (2012: calib/000000.txt, P2)

Calibrations count the centre of the top left pixel as (0, 0): half a pixel is added.

Sources: Uhrig et al., Sparsity invariant CNNs, 2017; Menze and Geiger, Object scene flow, 2015; Geiger et al., Are we
ready for autonomous driving?, 2012; the development kits' readme.txt.
"""

from __future__ import annotations

from typing import Literal

import attrs
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.geometry import from_integer_centres
from fourd_core.media.formats.depth import KITTI
from fourd_core.recipe import Location
from fourd_evals.annotated import pinhole
from fourd_evals.evaluation_sets import (
    NO_CROP,
    Crop,
    EvaluationConfig,
    EvaluationFrames,
    EvaluationSet,
    grey_depth,
    picture_size,
)
from fourd_evals.file_formats import read_kitti_flow
from fourd_evals.roots import Root

DEPTH = "data_depth_annotated/val"
MAPS = "proj_depth/groundtruth/image_02"
FIRST_FRAMES = 110
"""So many annotated frames of each drive the protocols take."""
CAP = 80.0


class KITTIDrive(EvaluationFrames):
    """The annotated frames of a drive, the left colour camera."""

    def __init__(self, root: Root, drive: str, frames: int | None, even: bool, depth_cap: float | None) -> None:
        self._depths, date = f"{DEPTH}/{drive}/{MAPS}", drive[: len("2011_09_26")]
        self._pictures = f"raw/{date}/{drive}/image_02/data"
        self._names = root.names(self._depths, ".png")[:frames]
        if not self._names:
            raise MediaError(f"the drive {drive} has no depth maps: {root.place(self._depths)} is empty or missing")
        size = picture_size(root, f"{self._pictures}/{self._names[0]}")
        self._crop = Crop.to_even(size) if even else NO_CROP
        self.depth_cap = depth_cap
        intrinsics = _intrinsics(root, f"raw/{date}/calib_cam_to_cam.txt", "P_rect_02")
        super().__init__(
            root.location,
            drive,
            frame_count=len(self._names),
            size=self._crop.size(size),
            known=frozenset({"depth"}),
            frame_rate=10,
            intrinsics=None if intrinsics is None else self._crop.intrinsics(intrinsics),
        )

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        return self._crop.of(self.root.picture(f"{self._pictures}/{self._names[index]}"))

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """As `AnnotatedFrames.depth`; known where the laser hit."""
        return self._crop.of(grey_depth(self.root, f"{self._depths}/{self._names[index]}", KITTI))


class KITTIDepth(EvaluationSet):
    """KITTI's annotated depth maps: the drives of their validation part."""

    title = "KITTI depth"

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """Which of it is read."""

        protocol: Literal["depthcrafter", "monst3r", "none"] = "depthcrafter"
        """depthcrafter: the first 110 annotated frames of each drive, an odd last row or column cut off, depth up to
        80 m; monst3r: the same frames, whole, all depths. none: all frames."""

    @classmethod
    def example(cls) -> Config:
        """Two drives of tiny pictures."""
        from fourd_evals.miniatures_evaluation import kitti_depth_miniature

        return cls.Config(root=Location(kitti_depth_miniature()), held_out=0.5)

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`."""
        drives = root.names(DEPTH, "_sync")
        if not drives or not root.has("raw"):
            raise root.missing("KITTI's depth maps", [f"{DEPTH}/<drive>_sync/{MAPS} and raw/<date>/<drive>_sync"])
        return drives

    def open(self, root: Root, name: str) -> KITTIDrive:
        """As `AnnotatedSet.open`."""
        protocol = self.config.protocol
        frames = None if protocol == "none" else FIRST_FRAMES
        return KITTIDrive(root, name, frames, protocol == "depthcrafter", CAP if protocol == "depthcrafter" else None)


class KITTIPair(EvaluationFrames):
    """Two pictures and the flow from the first to the second, of which it is known in descending order of frames."""

    def __init__(self, root: Root, key: str, pictures: str, flow: str) -> None:
        self._names = [f"{pictures}/{key}_{number}.png" for number in (10, 11)]
        self._flow, self._objects = f"{flow}/{key}_10.png", f"training/obj_map/{key}_10.png"
        known = {"flow", "motion"} if root.has(self._objects) else {"flow"}
        intrinsics = _intrinsics(root, f"training/calib_cam_to_cam/{key}.txt", "P_rect_02")
        if intrinsics is None:
            intrinsics = _intrinsics(root, f"training/calib/{key}.txt", "P2")
        super().__init__(
            root.location,
            key,
            frame_count=2,
            size=picture_size(root, self._names[0]),
            known=frozenset(known),
            frame_rate=10,
            intrinsics=intrinsics,
        )

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        return self.root.picture(self._names[index])

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"] | None:
        """As `AnnotatedFrames.flow`; known to the frame after alone."""
        if to < index:
            return None
        with self.root.on_disk(self._flow) as path:
            return read_kitti_flow(path)[0]

    def motion(self, index: int) -> Float[Tensor, "1 h w"] | None:
        """As `AnnotatedFrames.motion`; known of the first picture alone."""
        return (self.root.label_map(self._objects) > 0).float()[None] if index == 0 else None


class KITTIFlow(EvaluationSet):
    """KITTI's flow benchmarks of 2012 and 2015 (training part): pairs of pictures, forward flow."""

    title = "KITTI flow"

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """Which of it is read."""

        occluded: bool = True
        """Whether points count that the second picture does not show (`flow_occ`), or not (`flow_noc`)."""

    @classmethod
    def example(cls) -> Config:
        """Two pairs of tiny pictures."""
        from fourd_evals.miniatures_evaluation import kitti_flow_miniature

        return cls.Config(root=Location(kitti_flow_miniature()), held_out=0.5)

    @property
    def _flow(self) -> str:
        return f"training/flow_{'occ' if self.config.occluded else 'noc'}"

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`."""
        found = [name.removesuffix("_10.png") for name in root.names(self._flow, "_10.png")]
        if not found or _pictures(root) is None:
            raise root.missing("KITTI's flow", [f"{self._flow}/000000_10.png with training/image_2 or colored_0"])
        return found

    def open(self, root: Root, name: str) -> KITTIPair:
        """As `AnnotatedSet.open`."""
        return KITTIPair(root, name, str(_pictures(root)), self._flow)


def _pictures(root: Root) -> str | None:
    return root.first(["training/image_2", "training/colored_0"])


def _intrinsics(root: Root, name: str, key: str) -> Float[Tensor, "3 3"] | None:
    """The pinhole matrix of a 3x4 projection in a calibration file, in our pixels; None where there is no file.

    Raises:
        MediaError: the file has no such line.
    """
    if not root.has(name):
        return None
    for line in root.read(name).decode("utf-8", "replace").splitlines():
        if line.startswith(f"{key}:"):
            fx, _, cx, _, _, fy, cy, *_ = (float(word) for word in line.split()[1:13])
            return from_integer_centres(pinhole(fx, fy, cx, cy))
    raise MediaError(f"{root.place(name)} has no line {key}")
