"""TAP-Vid: points that people (or a simulator) followed through videos.

    *.pkl    one pickle, or shards: a dict by name or a list of {video, points, occluded}
             video     t h w 3 in 8 bits (DAVIS, RGB-stacking, RoboTAP), or a JPEG a frame (Kinetics)
             points    n t 2, x and y in 0 .. 1 of the frame's width and height
             occluded  n t

Positions are fractions of the raster, so that width and height turn them into our pixels as they are. `occluded` is the
opposite of visibility. Where a point is occluded its position is the file's, and counts nowhere. Which points are asked
for, in the first frame in which they are seen or in every fifth, is the metric's business. Pickles are opened by
`plain_pickle`, which runs nothing.

Source: Doersch et al., TAP-Vid, 2022, and its readme.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import attrs
import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from fourd_core.data import Tracks
from fourd_core.errors import MediaError
from fourd_core.recipe import Location
from fourd_evals.annotated import root_here
from fourd_evals.evaluation_sets import EvaluationConfig, EvaluationFrames, EvaluationSet
from fourd_evals.plain_pickle import read_plain_pickle
from fourd_evals.roots import Root, picture_samples

PARTS = ("video", "points", "occluded")
_LOADING = threading.Lock()


class TAPVidVideo(EvaluationFrames):
    """One video and its points. Its pickle is read again where another was read in between."""

    def __init__(self, root: Root, key: str, frame_rate: float) -> None:
        self.path, self.location = key, root.location
        video, points, occluded = (self._item[part] for part in PARTS)
        shape = np.shape(points)
        if len(shape) != 3 or shape[1:] != (len(video), 2) or np.shape(occluded) != shape[:2]:
            raise MediaError(
                f"{root.place(key)} has points {shape} and occluded {np.shape(occluded)} for {len(video)} frames, not "
                "one row of positions (x, y) a point"
            )
        _, height, width = self.picture(0).shape
        super().__init__(root.location, key, len(video), (height, width), frozenset({"tracks"}), frame_rate)

    @property
    def _item(self) -> dict[str, Any]:
        file, _, name = self.path.partition("/")
        return shard(self.location, f"{file}.pkl")[name]

    def picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As `AnnotatedFrames.picture`."""
        frame = self._item["video"][index]
        if not isinstance(frame, ndarray):
            frame = picture_samples(frame, f"frame {index} of {self.path}", "RGB")
        return torch.from_numpy(frame.copy()).permute(2, 0, 1)

    def tracks(self, indices: Sequence[int]) -> Tracks:
        """As `AnnotatedFrames.tracks`; whether a point is seen is known in every frame."""
        item, indices = self._item, list(indices)
        height, width = self.size
        points = torch.tensor(item["points"][:, indices].astype(np.float64)).transpose(0, 1)
        visible = torch.tensor(~item["occluded"][:, indices].astype(bool)).T
        return Tracks(
            xy=(points * points.new_tensor([width, height])).float()[None],
            visibility=visible.float()[None].contiguous(),
            live=torch.ones_like(visible)[None],
        )


class TAPVid(EvaluationSet):
    """TAP-Vid (DAVIS, RGB-stacking, Kinetics, RoboTAP): points followed in 2D."""

    title = "TAP-Vid"

    @attrs.frozen(kw_only=True)
    class Config(EvaluationConfig):
        """How it is read."""

        frame_rate: float = attrs.field(default=25.0, validator=attrs.validators.gt(0))
        """Frames per second, which the files do not state."""

    @classmethod
    def example(cls) -> Config:
        """Two tiny videos."""
        from fourd_evals.miniatures_tapvid import tapvid_miniature

        return cls.Config(root=Location(tapvid_miniature()), held_out=0.5)

    def sequences(self, root: Root) -> list[str]:
        """As `EvaluationSet.sequences`. Every file is read once for its names, Kinetics' shards one after the other."""
        files = root.names(suffix=".pkl")
        if not files:
            raise root.missing("TAP-Vid", ["tapvid_davis.pkl", "0000_of_0010.pkl"])
        return [f"{file.removesuffix('.pkl')}/{name}" for file in files for name in shard(root.location, file)]

    def open(self, root: Root, name: str) -> TAPVidVideo:
        """As `AnnotatedSet.open`."""
        return TAPVidVideo(root, name, self.config.frame_rate)


def shard(location: str, file: str) -> Mapping[str, dict[str, Any]]:
    """The videos of a pickle by name, or by number; only the one that was read last is kept."""
    with _LOADING:
        return _shard(location, file, os.getpid())


@lru_cache(maxsize=1)
def _shard(location: str, file: str, _process: int) -> Mapping[str, dict[str, Any]]:
    root = root_here(location)
    with root.open(file) as handle:
        content = read_plain_pickle(handle, root.place(file))
    if isinstance(content, (list, tuple)):
        content = {f"{number:05d}": item for number, item in enumerate(content)}
    if not isinstance(content, dict) or not all(
        isinstance(item, dict) and set(PARTS) <= set(item) for item in content.values()
    ):
        raise MediaError(f"{root.place(file)} does not hold videos of TAP-Vid: dicts of {', '.join(PARTS)}")
    return content
