"""Ground truth at the pixels that a network sees, and what of it a batch of training samples holds.

Ground truth is `Predictions` under the names of `fourd_core.interfaces.TRUTHS`; NaN is unknown in every map.
"""

from __future__ import annotations

from typing import cast

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import Cameras, Maps, Prediction, Predictions, Tracks
from fourd_core.media.views import View


def seen(truth: Predictions, view: View) -> Predictions:
    """What is known in pixels of a video, in pixels of a view of it.

    Maps are taken at the nearest pixel (half a mean of two depths is nowhere), flow is measured in pixels of the view,
    tracks and intrinsics are moved, and a point outside the view is not seen.
    """
    return Predictions({name: _seen(prediction, view) for name, prediction in truth.items()})


def _seen(prediction: Prediction, view: View) -> Prediction:
    if isinstance(prediction, Maps):
        values = nearest(prediction.values, view)
        if prediction.kind == "flow":
            values = values * values.new_tensor(view.scale).view(2, 1, 1)
        return attrs.evolve(prediction, values=values)
    if isinstance(prediction, Cameras):
        return attrs.evolve(prediction, intrinsics=view.intrinsics_to_view(prediction.intrinsics))
    tracks = cast(Tracks, prediction)
    xy = view.to_view(tracks.xy)
    inside = ((xy >= 0) & (xy < xy.new_tensor(view.size[::-1]))).all(-1)
    return attrs.evolve(tracks, xy=xy, visibility=tracks.visibility.where(inside, torch.zeros_like(tracks.visibility)))


def nearest(maps: Float[Tensor, "b t c h w"], view: View) -> Float[Tensor, "b t c y x"]:
    """Of each pixel of a view, the value of the video's pixel in which its centre lies; NaN outside the frame."""
    rows, columns = (
        (torch.arange(side, device=maps.device) + 0.5 + corner) / scale
        for side, corner, scale in zip(view.size, view.corner, reversed(view.scale), strict=True)
    )
    height, width = maps.shape[-2:]
    picked = maps[..., rows.long().clamp(max=height - 1)[:, None], columns.long().clamp(max=width - 1)]
    outside = (rows >= height)[:, None] | (columns >= width)
    return picked.masked_fill(outside, torch.nan) if outside.any() else picked
