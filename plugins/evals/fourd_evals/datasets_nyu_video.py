"""NYUv2's pictures with depth as videos of one frame each; who measures a video system on them repeats the frame.

The files are those of `fourd_evals.nyu`. Depth is the one with its holes filled in, in metres. The camera is Kinect's
colour camera as the authors' toolbox states it, whose top left pixel's centre is taken to be (0, 0): half a pixel is
added.

Source: Silberman et al., Indoor segmentation and support inference from RGBD images, 2012, and its toolbox.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import attrs
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.errors import MediaError
from fourd_core.geometry import from_integer_centres
from fourd_core.media.layouts import Part
from fourd_core.recipe import Location
from fourd_evals.annotated import AnnotatedConfig, AnnotatedSet, known_depth, pinhole, root_here
from fourd_evals.evaluation_sets import NO_CROP, Crop, EvaluationFrames
from fourd_evals.labelled import Part as NYUPart
from fourd_evals.nyu import NYUPictures, open_nyu
from fourd_evals.roots import Root

CROP = Crop(top=45, bottom=480 - 471, left=41, right=640 - 601)
"""Rows 45 to 470 and columns 41 to 600: what is left beside the white borders (Eigen's crop)."""
CAP = 10.0
CAMERA = (518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465)


class NYUFrame(EvaluationFrames):
    """One picture."""

    def __init__(self, root: Root, key: str, crop: Crop, depth_cap: float | None) -> None:
        part, number = key.split("/")
        self._part, self._number, self._crop, self.depth_cap = _PARTS[part], int(number), crop, depth_cap
        _, height, width = _pictures(root.location, self._part)[self._number].picture.shape
        super().__init__(
            root.location,
            key,
            frame_count=1,
            size=crop.size((height, width)),
            known=frozenset({"depth"}),
            frame_rate=1,
            intrinsics=crop.intrinsics(from_integer_centres(pinhole(*CAMERA))),
        )

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        return self._crop.of(_pictures(self.location, self._part)[self._number].picture)

    def depth(self, index: int) -> Float[Tensor, "1 h w"]:
        """As `AnnotatedFrames.depth`."""
        return self._crop.of(known_depth(_pictures(self.location, self._part)[self._number].depth, float("inf")))


class NYUDepth(AnnotatedSet):
    """NYUv2: single pictures with depth; 654 of them are held out."""

    title = "NYUv2"

    @attrs.frozen(kw_only=True)
    class Config(AnnotatedConfig):
        """Which of it is read."""

        protocol: Literal["depthcrafter", "none"] = "depthcrafter"
        """depthcrafter: rows 45 to 470, columns 41 to 600, depth up to 10 m; none: whole pictures."""

    @classmethod
    def example(cls) -> Config:
        """A few tiny pictures."""
        from fourd_evals.miniatures import nyu_miniature

        return cls.Config(root=Location(nyu_miniature()), protocol="none")

    def find(self, root: Root) -> Mapping[Part, Sequence[str]]:
        """As `AnnotatedSet.find`: the authors' own split; of the part for training as much as is there."""
        evaluated = len(_pictures(root.location, "val"))
        try:
            others = len(_pictures(root.location, "train"))
        except MediaError:
            others = 0
        return {
            "train": [f"train/{number:06d}" for number in range(others)],
            "held_out": [f"test/{number:06d}" for number in range(evaluated)],
        }

    def open(self, root: Root, name: str) -> NYUFrame:
        """As `AnnotatedSet.open`."""
        if self.config.protocol == "none":
            return NYUFrame(root, name, NO_CROP, None)
        return NYUFrame(root, name, CROP, CAP)


_PARTS: dict[str, NYUPart] = {"train": "train", "test": "val"}


def _pictures(location: str, part: NYUPart) -> NYUPictures:
    return _opened(location, part, os.getpid())


@lru_cache(maxsize=4)
def _opened(location: str, part: NYUPart, _process: int) -> NYUPictures:
    return open_nyu(root_here(location), part, "depth", "filled")
