"""Virtual KITTI 2: five driven scenes in several weathers and turns, rendered with all that is known of them.

    Scene01/<variation>/frames/rgb/Camera_0/rgb_00000.jpg
        depth/Camera_0/depth_00000.png                     z in centimetres, 65535: sky
        forwardFlow/Camera_0/flow_00000.png                to the frame after, `file_formats.read_vkitti_flow`
        backwardFlow/Camera_0/backwardFlow_00001.png       to the frame before
        instanceSegmentation/Camera_0/instancegt_00000.png trackID + 1, 0 where no vehicle is
    Scene01/<variation>/{bbox,extrinsic,intrinsic}.txt     tables with a line of names; extrinsic is world to camera

What moves is what `bbox.txt` says of each vehicle in each frame; everything else stands still, and a vehicle that it
does not list is not known. The principal point is (620.5, 187) of 1242 x 375: the top left pixel's centre is (0, 0)
there, so that half a pixel is added.

Source: Cabon, Murray, Humenberger, Virtual KITTI 2, 2020, and the data set's page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.geometry import from_integer_centres, inverse
from fourd_core.recipe import Location
from fourd_evals.annotated import Camera, pinhole
from fourd_evals.evaluation_sets import (
    EvaluationConfig,
    EvaluationFrames,
    EvaluationSet,
    grey_depth,
    one_pinhole,
    picture_size,
    table,
)
from fourd_evals.file_formats import read_vkitti_flow
from fourd_evals.roots import Root

CENTIMETRES = 100.0
SKY = 65535
TITLE = "Virtual KITTI 2"
POSE = [column for row in "123" for column in (f"r{row},1", f"r{row},2", f"r{row},3", f"t{row}")]


class VKITTI2Sequence(EvaluationFrames):
    """A variation of a scene, seen by one of the two cameras."""

    def __init__(self, root: Root, key: str, camera: int) -> None:
        self._folder, self._camera = f"{key}/frames", f"Camera_{camera}"
        names = root.names(f"{self._folder}/rgb/{self._camera}", ".jpg")
        self._numbers = [int(name.removesuffix(".jpg").rpartition("_")[2]) for name in names]
        self._there = {
            kind: bool(root.names(f"{self._folder}/{kind}", self._camera))
            for kind in ("depth", "forwardFlow", "backwardFlow", "instanceSegmentation")
        }
        self._cameras = _cameras(root, key, camera)
        self._moves = _moves(root, key, camera) if self._there["instanceSegmentation"] else None
        known = {
            "depth": self._there["depth"],
            "flow": self._there["forwardFlow"] or self._there["backwardFlow"],
            "motion": self._moves is not None,
            "cameras": bool(self._cameras),
        }
        super().__init__(
            root.location,
            key,
            frame_count=len(names),
            size=picture_size(root, self._file("rgb", "rgb", 0, "jpg")),
            known=frozenset(name for name, is_known in known.items() if is_known),
            frame_rate=10,
            intrinsics=one_pinhole([self._cameras[number][1] for number in self._numbers if number in self._cameras]),
        )

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        return self.root.picture(self._file("rgb", "rgb", index, "jpg"))

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """As `AnnotatedFrames.depth`; the sky's is not known."""
        return grey_depth(self.root, self._file("depth", "depth", index), CENTIMETRES, unknown=(0, SKY))

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"] | None:
        """As `AnnotatedFrames.flow`."""
        kind, prefix = ("forwardFlow", "flow") if to > index else ("backwardFlow", "backwardFlow")
        if not self._there[kind]:
            return None
        with self.root.on_disk(self._file(kind, prefix, index)) as path:
            return read_vkitti_flow(path)[0]

    def motion(self, index: int) -> Float[Tensor, "1 h w"]:
        """As `AnnotatedFrames.motion`."""
        assert self._moves is not None
        ids = self.root.label_map(self._file("instanceSegmentation", "instancegt", index))
        moving = torch.full((int(ids.max()) + 1,), torch.nan)
        moving[0] = 0.0
        for track, moves in self._moves.get(self._numbers[index], {}).items():
            if track + 1 < len(moving):
                moving[track + 1] = float(moves)
        return moving[ids][None]

    def camera(self, index: int) -> Camera | None:
        """As `AnnotatedFrames.camera`."""
        return self._cameras.get(self._numbers[index])

    def _file(self, kind: str, prefix: str, index: int, suffix: str = "png") -> str:
        return f"{self._folder}/{kind}/{self._camera}/{prefix}_{self._numbers[index]:05d}.{suffix}"


class VKITTI2(EvaluationSet):
    """Virtual KITTI 2: depth, flow both ways, what moves, cameras."""

    title = TITLE

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """Which of it is read."""

        variations: tuple[str, ...] = ("clone",)
        """Weathers and turns of each scene: clone, fog, morning, overcast, rain, sunset, 15-deg-left ..."""
        camera: int = attrs.field(default=0, validator=attrs.validators.in_((0, 1)))
        """0 is the left, 1 the right one."""

    @classmethod
    def example(cls) -> Config:
        """Two scenes of tiny pictures."""
        from fourd_evals.miniatures_evaluation import vkitti2_miniature

        return cls.Config(root=Location(vkitti2_miniature()), held_out=0.5)

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`."""
        camera = f"frames/rgb/Camera_{self.config.camera}"
        scenes = [name for name in root.names() if name.startswith("Scene")]
        names = [f"{scene}/{variation}" for scene in scenes for variation in self.config.variations]
        found = [name for name in names if root.has(f"{name}/{camera}")]
        if not found:
            raise root.missing(TITLE, [f"Scene01/{self.config.variations[0]}/{camera}/rgb_00000.jpg"])
        return found

    def open(self, root: Root, name: str) -> VKITTI2Sequence:
        """As `AnnotatedSet.open`."""
        return VKITTI2Sequence(root, name, self.config.camera)


def _cameras(root: Root, key: str, camera: int) -> dict[int, Camera]:
    """Pose and intrinsics by the frame's number; empty where the tables are not there."""
    if not root.has(f"{key}/extrinsic.txt") or not root.has(f"{key}/intrinsic.txt"):
        return {}
    intrinsics = {
        int(row["frame"]): from_integer_centres(pinhole(*_values(row, ["K[0,0]", "K[1,1]", "K[0,2]", "K[1,2]"])))
        for row in _rows(root, f"{key}/intrinsic.txt", camera)
    }
    cameras = {}
    for row in _rows(root, f"{key}/extrinsic.txt", camera):
        cam_from_world = torch.eye(4, dtype=torch.float64)
        cam_from_world[:3] = torch.tensor(_values(row, POSE), dtype=torch.float64).view(3, 4)
        if (number := int(row["frame"])) in intrinsics:
            cameras[number] = inverse(cam_from_world), intrinsics[number]
    return cameras


def _moves(root: Root, key: str, camera: int) -> dict[int, dict[int, bool]] | None:
    """Whether a vehicle moves, by the frame's number and the vehicle's; None where the table is not there."""
    if not root.has(f"{key}/bbox.txt"):
        return None
    moves: dict[int, dict[int, bool]] = {}
    for row in _rows(root, f"{key}/bbox.txt", camera, "trackID", "isMoving"):
        moves.setdefault(int(row["frame"]), {})[int(row["trackID"])] = row["isMoving"].lower() in ("true", "1")
    return moves


def _rows(root: Root, name: str, camera: int, *columns: str) -> list[dict[str, str]]:
    rows = table(root, name)
    missing = [column for column in ("frame", "cameraID", *columns) if rows and column not in rows[0]]
    if missing:
        raise MediaError(f"{root.place(name)} has no column {missing[0]}")
    return [row for row in rows if int(row["cameraID"]) == camera]


def _values(row: Mapping[str, str], columns: Sequence[str]) -> list[float]:
    return [float(row[column]) for column in columns]
