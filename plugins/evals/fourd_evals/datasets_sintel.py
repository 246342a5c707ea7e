"""MPI Sintel's training part with its depth and cameras.

    training/{clean,final}/<sequence>/frame_0001.png
    training/flow/<sequence>/frame_0001.flo         to the frame after; the last frame has none
    training/depth/<sequence>/frame_0001.dpt        z in metres
    training/camdata_left/<sequence>/frame_0001.cam pinhole matrix and world to camera

Flow leads forward alone, so that it is known of frames that are asked for in descending order. The principal point is
(511.5, 217.5) of 1024 x 436: the top left pixel's centre is (0, 0) there, so that half a pixel is added. The maps of
`invalid` and `occlusions` are not applied: the field scores all pixels.

Source: Butler et al., A naturalistic open source movie for optical flow evaluation, 2012; the data set's page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.geometry import from_integer_centres, inverse
from fourd_core.recipe import Location
from fourd_evals.annotated import Camera, known_depth
from fourd_evals.evaluation_sets import EvaluationConfig, EvaluationFrames, EvaluationSet, picture_size
from fourd_evals.file_formats import read_cam, read_dpt, read_flo
from fourd_evals.roots import Root

CAP = 70.0
MONST3R = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6", "shaman_3",
    "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
"""Of the 23 sequences those with a camera that moves and is not a straight line."""
ALL = (
    "alley_1", "alley_2", "ambush_2", "ambush_4", "ambush_5", "ambush_6", "ambush_7", "bamboo_1", "bamboo_2",
    "bandage_1", "bandage_2", "cave_2", "cave_4", "market_2", "market_5", "market_6", "mountain_1", "shaman_2",
    "shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
FOLDERS = {"depth": ("depth", "dpt"), "flow": ("flow", "flo"), "cameras": ("camdata_left", "cam")}
"""Where what is known stands, and how the files end."""


class SintelSequence(EvaluationFrames):
    """One sequence in one of the two renderings."""

    def __init__(self, root: Root, key: str, render: str, depth_cap: float | None) -> None:
        self._pictures = f"training/{render}/{key}"
        self._names = [name.removesuffix(".png") for name in root.names(self._pictures, ".png")]
        self.depth_cap = depth_cap
        known = [what for what, (folder, _) in FOLDERS.items() if root.has(f"training/{folder}/{key}")]
        super().__init__(
            root.location,
            key,
            frame_count=len(self._names),
            size=picture_size(root, f"{self._pictures}/{self._names[0]}.png"),
            known=frozenset(known),
            frame_rate=24,
        )
        if "cameras" in known:
            self.intrinsics = self.camera(0)[1].float()

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        return self.root.picture(f"{self._pictures}/{self._names[index]}.png")

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """As `AnnotatedFrames.depth`."""
        with self.root.on_disk(self._file("depth", index)) as path:
            return known_depth(read_dpt(path), float("inf"))

    def flow(self, index: int, to: int) -> Float[Tensor, "2 h w"] | None:
        """As `AnnotatedFrames.flow`; known to the frame after alone."""
        if to < index:
            return None
        with self.root.on_disk(self._file("flow", index)) as path:
            return read_flo(path)

    def camera(self, index: int) -> Camera:
        """As `AnnotatedFrames.camera`."""
        with self.root.on_disk(self._file("cameras", index)) as path:
            intrinsics, cam_from_world = read_cam(path)
        return inverse(cam_from_world), from_integer_centres(intrinsics)

    def _file(self, what: str, index: int) -> str:
        folder, suffix = FOLDERS[what]
        return f"training/{folder}/{self.path}/{self._names[index]}.{suffix}"


class Sintel(EvaluationSet):
    """MPI Sintel (training part): depth, forward flow, cameras."""

    title = "Sintel"

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """Which of it is read."""

        protocol: Literal["depthcrafter", "monst3r", "none"] = "depthcrafter"
        """depthcrafter: all 23 sequences, clean; monst3r: 14 of them, final; both count depth up to 70 m and take all
        frames. none: whatever is there."""
        render: Literal["clean", "final"] | None = None
        """clean: without blur and mist; none: as the protocol says, final where there is none."""

    @classmethod
    def example(cls) -> Config:
        """Two sequences of tiny pictures."""
        from fourd_evals.miniatures_evaluation import sintel_miniature

        return cls.Config(root=Location(sintel_miniature()), held_out=0.5, protocol="none")

    @property
    def render(self) -> str:
        """Which pictures are read."""
        return str(self.config.render or ("clean" if self.config.protocol == "depthcrafter" else "final"))

    def published(self) -> Sequence[str]:
        """As `EvaluationSet.published`."""
        return {"depthcrafter": ALL, "monst3r": MONST3R, "none": ()}[self.config.protocol]

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`."""
        found = root.names(f"training/{self.render}")
        if not found:
            raise root.missing("Sintel", [f"training/{self.render}/alley_1/frame_0001.png"])
        return found

    def open(self, root: Root, name: str) -> SintelSequence:
        """As `AnnotatedSet.open`."""
        return SintelSequence(root, name, self.render, None if self.config.protocol == "none" else CAP)
