"""scikit-image's stereo pair of a motorcycle as videos with ground truth (Middlebury 2014; depth 2.1 to 5.0 m)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float64, UInt8
from skimage import data
from torch import Tensor

from fourd_core.data import Maps, Predictions
from fourd_core.interfaces import AnnotatedVideo, Dataset, Split, Video
from fourd_core.media.views import ViewConfig

FOCAL, BASELINE, OFFSET = 994.978, 0.193001, 31.086
"""Pixels, metres, and the difference of the principal points in pixels."""
REPEATED = 16
"""So many times a still picture is shown, as L4P does."""


class StereoPair(AnnotatedVideo):
    """For depth the left picture, standing still; for flow the right picture and then the left one."""

    def __init__(self, what: Literal["depth", "flow"]) -> None:
        left, right, disparity = (torch.from_numpy(x.copy()) for x in data.stereo_motorcycle())
        self.name = self.key = f"stereo_motorcycle/{what}"
        self.known, self.size = frozenset({what}), (left.shape[0], left.shape[1])
        pictures = [left] * REPEATED if what == "depth" else [right, left]
        self._frames = torch.stack(pictures).permute(0, 3, 1, 2)
        self.frame_count = len(pictures)
        self._disparity = disparity.where(disparity.isfinite(), torch.nan).float()

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As `Video.read`."""
        return self._frames[list(indices)]

    def times(self, indices: Sequence[int]) -> Float64[Tensor, " t"]:
        """As if at 25 frames a second."""
        return torch.tensor([index / 25 for index in indices], dtype=torch.float64)

    def truth(self, indices: Sequence[int]) -> Predictions:
        """The content at x in the left picture stands at x - disparity in the right one."""
        if "depth" in self.known:
            depth = FOCAL * BASELINE / (self._disparity + OFFSET)
            return Predictions({"depth": Maps(depth.expand(1, len(indices), 1, -1, -1), kind="depth", unit="m")})
        flow = torch.full((1, len(indices), 2, *self.size), torch.nan)
        for place in range(1, len(indices)):
            if (indices[place - 1], indices[place]) == (0, 1):
                flow[0, place] = torch.stack([-self._disparity, 0 * self._disparity])
        return Predictions({"flow": Maps(flow, kind="flow", unit="px")})


class StereoPairs(Dataset):
    """The one pair."""

    Config = ViewConfig

    def __init__(self, what: Literal["depth", "flow"], view: ViewConfig) -> None:
        self.view, self._videos = view, [StereoPair(what)]

    def videos(self, split: Split) -> list[Video]:
        """The same in every split."""
        return list(self._videos)
