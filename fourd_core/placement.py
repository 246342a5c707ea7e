"""Predictions from the pixels that the network saw to the pixels of the video, and tracks into the world."""

from __future__ import annotations

from typing import Literal, cast

import attrs
import torch

from fourd_core.data import Cameras, Maps, Prediction, Tracks
from fourd_core.media.views import View

Pixels = Literal["video", "view"]


def in_video(prediction: Prediction, view: View, pixels: Pixels) -> Prediction:
    """The same prediction measured in the pixels of the video.

    Args:
        view: how the network saw the video.
        pixels: the grid of maps: the video's own pixels, with NaN where the view shows nothing, or the view's.
            Depth that is not positive and finite is unknown, and becomes NaN on either grid.
    """
    if isinstance(prediction, Maps):
        values = prediction.values
        if prediction.kind == "flow":
            values = view.flow_to_video(values)
        if prediction.kind == "depth":
            values = values.where(
                (values > 0) & values.isfinite(), torch.nan
            )  # 0 is what stitching leaves where it knows no depth
        if pixels == "video":
            values = view.restore(values)
        return attrs.evolve(prediction, values=values)
    if isinstance(prediction, Cameras):
        return attrs.evolve(prediction, intrinsics=view.intrinsics_to_video(prediction.intrinsics))
    tracks = cast(Tracks, prediction)
    return attrs.evolve(tracks, xy=view.to_video(tracks.xy), remembered={})
