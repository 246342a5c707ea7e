"""Answers without any network, for the rows that ours must stand above."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fourd_core import registry
from fourd_core.data import Clip
from fourd_core.errors import PluginError
from fourd_core.interfaces import CueProvider
from fourd_core.sinks import sample_nearest
from fourd_evals.looks import Look

MEAN_SIDE = 64
"""Rows and columns on which the mean depth map of a data set is gathered."""


def dis_flow() -> CueProvider | None:
    """OpenCV's DIS, where its plugin is installed."""
    try:
        cls = registry.load("cues", "dis")
    except PluginError:
        return None
    return cls(cls.Config())


def pair_flows(cue: CueProvider, look: Look, first: int, count: int) -> Iterator[Float[Tensor, "2 2 y x"]]:
    """Between each frame of `first ..` and the one before it, in pixels of the view: forward, backward.

    The video's first frame has no frame before it.
    """
    for frame in range(max(first, 1), first + count):
        yield cue(Clip(look.frames(frame - 1, 2)[None])).values[0]


def backward_flows(cue: CueProvider, look: Look, first: int, count: int) -> Float[Tensor, "t 2 y x"]:
    """From each of these frames to the one before it, in pixels of the view; 0 in the video's first frame."""
    flows = torch.zeros(count, 2, *look.view.size)
    for place, pair in enumerate(pair_flows(cue, look, first, count), start=0 if first else 1):
        flows[place] = pair[1]
    return flows


class MeanDisparity:
    """The mean over frames of the true disparity, on a coarse grid; depth is unknown where it is NaN."""

    def __init__(self) -> None:
        self._sum = torch.zeros(MEAN_SIDE, MEAN_SIDE, dtype=torch.float64)
        self._weight = torch.zeros(MEAN_SIDE, MEAN_SIDE, dtype=torch.float64)

    def add(self, depth: Float[Tensor, "t 1 h w"]) -> None:
        """Some frames' truth."""
        known = depth.isfinite() & (depth > 0)
        disparity = torch.where(known, 1 / depth, 0.0).double()
        size = (MEAN_SIDE, MEAN_SIDE)
        self._sum += F.adaptive_avg_pool2d(disparity, size).sum((0, 1))
        self._weight += F.adaptive_avg_pool2d(known.double(), size).sum((0, 1))

    def map(self) -> Float[Tensor, "h w"]:
        """The mean; where nothing was ever known, the mean of what was."""
        known = self._weight > 0
        overall = self._sum.sum() / self._weight.sum().clamp(min=1e-12)
        return torch.where(known, self._sum / self._weight.clamp(min=1e-12), overall).float()


def chained(
    flows: Iterator[Float[Tensor, "2 2 y x"]],
    frame: Int64[Tensor, " n"],
    xy: Float[Tensor, "n 2"],
    frames: int,
) -> Float[Tensor, "n t 2"]:
    """Points carried from frame to frame by flow, in pixels of the view; they stay where they are before their query.

    Args:
        flows: between each frame and the one before, from the second on.
        frame: in which each point is at `xy`.
    """
    places = xy[:, None].expand(-1, frames, -1).clone()
    for number, flow in enumerate(flows, start=1):
        before = places[:, number - 1]
        motion = torch.stack(
            [sample_nearest(flow[None, None, 0, axis], before[None, None])[0, 0] for axis in (0, 1)], -1
        )
        moved = before + motion.nan_to_num(0.0)
        places[:, number] = torch.where((number > frame)[:, None], moved, xy)
    return places
