"""ScanNet's test scenes as its exporter writes them.

    scans_test/scene0707_00/color/0.jpg          1296 x 968
        depth/0.png                              640 x 480, z in millimetres, 0 not known
        pose/0.txt                               camera to world, 4x4; infinite where tracking was lost
        intrinsic/intrinsic_depth.txt            4x4

Numbers are not padded: frames are sorted by number. Colour and depth show the same picture at different sizes; frames
are read at the depth's, so that no depth is resampled. The calibration counts the centre of the top left pixel as
(0, 0): half a pixel is added.

Source: Dai et al., ScanNet, 2017; the data set's page. Selection and crop: DepthCrafter's and MonST3R's preparation.
"""

from __future__ import annotations

from typing import Literal

import attrs
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.geometry import from_integer_centres
from fourd_core.media.formats.depth import MILLIMETRES
from fourd_core.recipe import Location
from fourd_evals.annotated import Camera
from fourd_evals.evaluation_sets import (
    NO_CROP,
    Crop,
    EvaluationConfig,
    EvaluationFrames,
    EvaluationSet,
    grey_depth,
    numbers,
)
from fourd_evals.roots import Root

FOLDER = "scans_test"
STRIDE, FRAMES = 3, 90
"""The protocols take frames 0, 3 .. 267."""
CROP = Crop(top=8, bottom=8, left=11, right=11)
"""What DepthCrafter cuts off colour and depth, each in its own pixels: black borders of the colours."""
CAP = 10.0


class ScanNetScene(EvaluationFrames):
    """One scan, or the frames of it that a protocol takes."""

    def __init__(self, root: Root, key: str, selected: bool, crop: Crop, depth_cap: float | None) -> None:
        self._folder, self._crop, self.depth_cap = f"{FOLDER}/{key}", crop, depth_cap
        self._step = STRIDE if selected else 1
        found = sorted(int(name.removesuffix(".jpg")) for name in root.names(f"{self._folder}/color", ".jpg"))
        self._numbers = found[::STRIDE][:FRAMES] if selected else found
        if not self._numbers:
            raise MediaError(f"the scene {key} has no pictures: {root.place(f'{self._folder}/color')} is empty")
        first = f"{self._folder}/depth/{self._numbers[0]}.png"
        height, width = root.grey16(first).shape
        matrix = numbers(root, f"{self._folder}/intrinsic/intrinsic_depth.txt")[:3, :3]
        super().__init__(
            root.location,
            key,
            frame_count=len(self._numbers),
            size=crop.size((height, width)),
            known=frozenset({"depth", "cameras"}),
            frame_rate=30 / self._step,
            intrinsics=crop.intrinsics(from_integer_centres(matrix)).float(),
        )

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`: cropped, then resized to the depth's pixels."""
        colours = self._crop.of(self.root.picture(f"{self._folder}/color/{self._numbers[index]}.jpg"))
        if tuple(colours.shape[-2:]) == self.size:
            return colours
        resized = F.interpolate(colours[None].float(), self.size, mode="bilinear", antialias=True)
        return resized[0].round().clamp(0, 255).byte()

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """As `AnnotatedFrames.depth`."""
        name = f"{self._folder}/depth/{self._numbers[index]}.png"
        return self._crop.of(grey_depth(self.root, name, MILLIMETRES))

    def camera(self, index: int) -> Camera | None:
        """As `AnnotatedFrames.camera`; not known where tracking was lost."""
        pose = numbers(self.root, f"{self._folder}/pose/{self._numbers[index]}.txt")
        assert self.intrinsics is not None
        return (pose, self.intrinsics) if bool(pose.isfinite().all()) else None


class ScanNet(EvaluationSet):
    """ScanNet's test scenes: depth, cameras."""

    title = "ScanNet"

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """Which of it is read."""

        protocol: Literal["depthcrafter", "monst3r", "none"] = "depthcrafter"
        """depthcrafter: frames 0, 3 .. 267, 8 rows and 11 columns cut off each side, depth up to 10 m; monst3r: the
        same frames, whole (it measures poses there). none: all frames."""

    @classmethod
    def example(cls) -> Config:
        """Two scenes of tiny pictures."""
        from fourd_evals.miniatures_evaluation import scannet_miniature

        return cls.Config(root=Location(scannet_miniature()), held_out=0.5)

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`."""
        scenes = [name for name in root.names(FOLDER) if name.startswith("scene")]
        if not scenes:
            raise root.missing("ScanNet's test scenes", [f"{FOLDER}/scene0707_00/color/0.jpg"])
        return scenes

    def open(self, root: Root, name: str) -> ScanNetScene:
        """As `AnnotatedSet.open`."""
        protocol = self.config.protocol
        cropped = protocol == "depthcrafter"
        return ScanNetScene(root, name, protocol != "none", CROP if cropped else NO_CROP, CAP if cropped else None)
