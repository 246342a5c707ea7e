"""Tracked points as TAPVid-3D scores them: in space, after a scaling.

Tensors are `n t`: points, frames; positions are in the camera of their frame, in metres. Other than in the picture, the
query's own frame counts.

Source: Koppula et al., TAPVid-3D, NeurIPS 2024, section 4; tapnet, tapvid3d/evaluation/metrics.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fourd_evals.point_tracks import DISTANCES, SIDE, TrackMeans, TrackTotals, track_scores, track_totals

Scaling = Literal["median", "mean", "none", "per_trajectory", "median_on_queries", "reproduce_2d", "local_neighborhood"]

FIXED_DISTANCES = (0.01, 0.04, 0.16, 0.64, 2.56)
"""Metres that may stand for 1, 2, 4, 8, 16 pixels."""
NEIGHBOURHOOD = 0.05
"""Metres within which points share a scale."""
LEAST = 1e-12


def focal_length(fx: float, fy: float, size: tuple[int, int]) -> float:
    """The mean focal length `sqrt(fx fy)` of a camera in pixels of a frame whose shorter side has 256.

    Args:
        size: of the frame in whose pixels `fx` and `fy` are.
    """
    return float((fx * fy) ** 0.5 * SIDE / min(size))


def tapvid3d_metrics(
    occluded: Bool[Tensor, "n t"],
    tracks: Float[Tensor, "n t 3"],
    predicted_occluded: Bool[Tensor, "n t"],
    predicted: Float[Tensor, "n t 3"],
    focal: float,
    scaling: Scaling = "median",
    query_frame: Float[Tensor, " n"] | Int64[Tensor, " n"] | None = None,
    fixed: bool = False,
    neighbourhood: float = NEIGHBOURHOOD,
    each_track: bool = False,
    known: Bool[Tensor, "n t"] | None = None,
) -> dict[str, Float64[Tensor, "*n"]]:
    """TAPVid-3D's numbers of one video, fractions, by the names of `tapvid_metrics`.

    Args:
        focal: see `focal_length`; k pixels are `k z / focal` metres at the true depth.
        scaling: what predictions are multiplied by before:
            median, mean: the ratio of the truth's median (mean) distance from the camera to the prediction's, over
                points that are seen in both; median_on_queries: the same in the queries' frames alone;
            none: 1; reproduce_2d: each position by the ratio of the depths there;
            per_trajectory: each point by the ratio of the depths in its query's frame;
            local_neighborhood: so, but each point together with all that comes nearer than `neighbourhood` to it in the
                same frame, as if they were one track, which weighs as much as the point's own.
        query_frame: needed by per_trajectory, local_neighborhood and median_on_queries.
        fixed: distances of 1, 4, 16, 64, 256 cm instead of pixels.
        each_track: numbers for each track instead of the video.
        known: positions that count; none: all.

    Raises:
        ValueError: the scaling needs the queries' frames.
    """
    if query_frame is None and scaling in ("per_trajectory", "local_neighborhood", "median_on_queries"):
        raise ValueError(f'the scaling "{scaling}" needs the frames of the queries')
    goal, points = tracks.double(), predicted.double()
    counted = torch.ones_like(occluded) if known is None else known
    asked = None if query_frame is None else query_frame.round().long()[:, None]
    scale = _scale(goal, points, occluded | predicted_occluded | ~counted, scaling, asked)
    weights = counted.double()
    if scaling == "local_neighborhood":
        hidden = occluded, predicted_occluded
        totals = _of_neighbourhoods(goal, points, hidden, weights, scale, focal, fixed, neighbourhood)
        if not each_track:
            totals = TrackTotals(*(values.sum(-1) for values in totals))
    else:
        within = _within(goal, points * scale, focal, fixed)
        totals = track_totals(occluded, predicted_occluded, within, weights, each_track)
    return track_scores(totals)


def _scale(
    goal: Float64[Tensor, "n t 3"],
    points: Float64[Tensor, "n t 3"],
    hidden: Bool[Tensor, "n t"],
    scaling: Scaling,
    asked: Int64[Tensor, "n 1"] | None,
) -> Float64[Tensor, "*n *t 1"]:
    """What positions are multiplied by, broadcast over `n t 3`."""
    if scaling == "reproduce_2d":
        return goal[..., 2:] / points[..., 2:]
    if scaling in ("per_trajectory", "local_neighborhood"):
        assert asked is not None
        true_z, z = (values[..., 2].gather(1, asked).clamp(min=LEAST) for values in (goal, points))
        return (true_z / z)[..., None]
    if scaling == "none":
        return torch.ones(1, 1, 1, dtype=torch.float64)
    norms = [values.square().sum(-1).clamp(min=LEAST).sqrt() for values in (goal, points)]
    if scaling == "median_on_queries":
        assert asked is not None
        norms, hidden = [values.gather(1, asked) for values in norms], hidden.gather(1, asked)
    true_size, size = (_average(values[~hidden], scaling == "mean") for values in norms)
    return (true_size / size).view(1, 1, 1)


def _average(values: Float64[Tensor, " n"], mean: bool) -> Float64[Tensor, ""]:
    """The mean or the median (of an even number the middle of both); NaN of nothing."""
    if not len(values):
        return values.new_tensor(torch.nan)
    return values.mean() if mean else values.quantile(0.5)


def _within(
    goal: Float64[Tensor, "n t 3"], points: Float64[Tensor, "n t 3"], focal: float, fixed: bool
) -> Bool[Tensor, "5 n t"]:
    off = (points - goal).square().sum(-1)
    if fixed:
        return torch.stack([off < metres**2 for metres in FIXED_DISTANCES])
    return torch.stack([off < (k * goal[..., 2] / focal).square() for k in DISTANCES])


def _of_neighbourhoods(
    goal: Float64[Tensor, "n t 3"],
    points: Float64[Tensor, "n t 3"],
    hidden: tuple[Bool[Tensor, "n t"], Bool[Tensor, "n t"]],
    weights: Float64[Tensor, "n t"],
    scale: Float64[Tensor, "n 1 1"],
    focal: float,
    fixed: bool,
    neighbourhood: float,
) -> TrackTotals:
    """The counts of each point, over all points and frames that are near it; `hidden`: in truth, in the prediction."""
    seen = (~hidden[0]).double() * weights
    each: list[TrackTotals] = []
    for track in range(len(goal)):
        near = (goal - goal[track]).square().sum(-1) < neighbourhood**2
        share = seen[track].sum() / seen[near].sum().clamp(min=1)
        # One row of all the near points.
        true, own, occluded, predicted_occluded, weight = (
            values[near][None] for values in (goal, points * scale[track], *hidden, weights * share)
        )
        within = _within(true, own, focal, fixed)
        each.append(track_totals(occluded, predicted_occluded, within, weight, each_track=False))
    return TrackTotals(*(torch.stack(values, dim=-1) for values in zip(*each, strict=True)))


class TAPVid3D(TrackMeans):
    """TAPVid-3D's 3D-AJ (`average_jaccard`), APD (`average_pts_within_thresh`), OA and what they are made of.

    A source's number is the mean over its videos, the benchmark's the plain mean over its three sources.
    """

    def __init__(self, scaling: Scaling = "median", fixed: bool = False) -> None:
        super().__init__()
        self.scaling, self.fixed = scaling, fixed

    def update(
        self,
        occluded: Bool[Tensor, "n t"],
        tracks: Float[Tensor, "n t 3"],
        predicted_occluded: Bool[Tensor, "n t"],
        predicted: Float[Tensor, "n t 3"],
        focal: float,
        query_frame: Float[Tensor, " n"] | Int64[Tensor, " n"] | None = None,
        known: Bool[Tensor, "n t"] | None = None,
    ) -> None:
        """One video, as `tapvid3d_metrics`."""
        args = (occluded, tracks, predicted_occluded, predicted, focal, self.scaling, query_frame, self.fixed)
        self.add(tapvid3d_metrics(*args, known=known))
