"""Tracked points as TAP-Vid scores them: in the picture.

Tensors are `b n t`, as there: videos, points, frames. Positions `(x, y)` are in pixels of a frame of 256 x 256, by
plain ratio from the video's.

Source: Doersch et al., TAP-Vid, NeurIPS 2022, section 3; tapnet, tapvid/evaluation_datasets.py.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import attrs
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torchmetrics import Metric

QueryMode = Literal["first", "strided"]

SIDE = 256
"""Of the frame in whose pixels distances are measured."""
DISTANCES = (1, 2, 4, 8, 16)
STRIDE = 5


@attrs.frozen(eq=False)
class QueriedTracks:
    """Which points are asked for, and the truth about each.

    Attributes:
        query: frame, y, x of each.
        tracks: `(x, y)` in every frame.
        occluded: where the point is not seen.
        origin: which of the given tracks it belongs to.
    """

    query: Float[Tensor, "n 3"]
    tracks: Float[Tensor, "n t 2"]
    occluded: Bool[Tensor, "n t"]
    origin: Int64[Tensor, " n"]


def sample_queries(
    tracks: Float[Tensor, "m t 2"], occluded: Bool[Tensor, "m t"], mode: QueryMode, stride: int = STRIDE
) -> QueriedTracks:
    """Queries for tracks: where each is seen first, or every place where it is seen in frames 0, `stride`, ...

    Tracks that are never seen (in these frames) are left out. Strided queries are in the order of their frames.
    """
    visible = ~occluded
    if mode == "first":
        origin = visible.any(dim=1).nonzero()[:, 0]
        frame = visible.int().argmax(dim=1)[origin]
    else:
        asked = visible.clone()
        asked[:, torch.arange(visible.shape[1]) % stride != 0] = False
        frame, origin = asked.T.nonzero().unbind(1)
    xy = tracks[origin, frame]
    query = torch.cat([frame[:, None].to(xy), xy.flip(-1)], dim=1)
    return QueriedTracks(query, tracks[origin], occluded[origin], origin)


def tapvid_metrics(
    query_frame: Float[Tensor, "b n"] | Int64[Tensor, "b n"],
    occluded: Bool[Tensor, "b n t"],
    tracks: Float[Tensor, "b n t 2"],
    predicted_occluded: Bool[Tensor, "b n t"],
    predicted: Float[Tensor, "b n t 2"],
    mode: QueryMode = "first",
    each_track: bool = False,
    known: Bool[Tensor, "b n t"] | None = None,
) -> dict[str, Tensor]:
    """TAP-Vid's numbers of each video (or each track: `b n`), fractions; NaN where nothing was seen that counts.

    `occlusion_accuracy`; `pts_within_k`: of the points that are seen, those less than k = 1, 2, 4, 8, 16 pixels off,
    whatever was predicted of their visibility; `jaccard_k`; and the means over k.

    Args:
        mode: first: only frames behind the query's count; strided: all but the query's.
        each_track: numbers for each track instead of each video.
        known: frames that count besides; none: all.
    """
    frames = torch.arange(occluded.shape[2], device=occluded.device)
    asked = query_frame.round().long()[..., None] if query_frame.is_floating_point() else query_frame[..., None]
    counted = frames > asked if mode == "first" else frames != asked
    if known is not None:
        counted = counted & known
    off = (predicted.double() - tracks.double()).square().sum(-1)
    within = torch.stack([off < k * k for k in DISTANCES])
    return track_scores(track_totals(occluded, predicted_occluded, within, counted.double(), each_track))


class TrackTotals(NamedTuple):
    """Weighted counts of points in frames, for each of the `k` distances where these matter."""

    counted: Float64[Tensor, "*b"]
    agreeing: Float64[Tensor, "*b"]
    """Predicted to be seen where they are, hidden where they are."""
    seen: Float64[Tensor, "*b"]
    claimed: Float64[Tensor, "*b"]
    """Predicted to be seen."""
    near: Float64[Tensor, "k ..."]
    """Seen and predicted within the distance."""
    hits: Float64[Tensor, "k ..."]
    """Near and predicted to be seen."""


def track_totals(
    occluded: Bool[Tensor, "*b n t"],
    predicted_occluded: Bool[Tensor, "*b n t"],
    within: Bool[Tensor, "k *b n t"],
    weights: Float64[Tensor, "*b n t"],
    each_track: bool,
) -> TrackTotals:
    """The counts over frames and, unless for `each_track`, over points."""
    axes = (-1,) if each_track else (-2, -1)
    seen, claimed = ~occluded, ~predicted_occluded
    near = within & seen
    counts = torch.ones_like(seen), occluded == predicted_occluded, seen, claimed, near, near & claimed
    return TrackTotals(*((which * weights).sum(axes) for which in counts))


def track_scores(totals: TrackTotals) -> dict[str, Float64[Tensor, "*b"]]:
    """The numbers by name.

    Jaccard: true positives over what is seen plus false positives; a point that is predicted to be seen is false where
    it is hidden or not near.
    """
    positions = totals.near / totals.seen
    jaccard = totals.hits / (totals.seen + totals.claimed - totals.hits)
    return {
        "occlusion_accuracy": totals.agreeing / totals.counted,
        **{f"pts_within_{k}": value for k, value in zip(DISTANCES, positions, strict=True)},
        **{f"jaccard_{k}": value for k, value in zip(DISTANCES, jaccard, strict=True)},
        "average_pts_within_thresh": positions.mean(0),
        "average_jaccard": jaccard.mean(0),
    }


TRACK_NUMBERS = (
    "average_jaccard", "average_pts_within_thresh", "occlusion_accuracy",
    *(f"jaccard_{k}" for k in DISTANCES), *(f"pts_within_{k}" for k in DISTANCES),
)  # fmt: skip


class TrackMeans(Metric):
    """The plain mean over videos of each of a video's numbers; a number that is NaN in a video does not count there."""

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(TRACK_NUMBERS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(TRACK_NUMBERS), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, numbers: dict[str, Float64[Tensor, "*b"]]) -> None:
        """Videos' numbers."""
        values = torch.stack([numbers[name].reshape(-1) for name in TRACK_NUMBERS]).to(self.sums)
        self.sums += values.nan_to_num(0.0).sum(1)
        self.counts += values.isfinite().sum(1)

    def compute(self) -> dict[str, float]:
        """Fractions by name; NaN where no video has the number."""
        return dict(zip(TRACK_NUMBERS, (self.sums / self.counts).tolist(), strict=True))


class TAPVid(TrackMeans):
    """TAP-Vid's AJ (`average_jaccard`), APD (`average_pts_within_thresh`), OA and what they are made of."""

    def __init__(self, mode: QueryMode = "first") -> None:
        super().__init__()
        self.mode = mode

    def update(
        self,
        query_frame: Float[Tensor, "b n"] | Int64[Tensor, "b n"],
        occluded: Bool[Tensor, "b n t"],
        tracks: Float[Tensor, "b n t 2"],
        predicted_occluded: Bool[Tensor, "b n t"],
        predicted: Float[Tensor, "b n t 2"],
        known: Bool[Tensor, "b n t"] | None = None,
    ) -> None:
        """Videos, as `tapvid_metrics`."""
        args = (query_frame, occluded, tracks, predicted_occluded, predicted)
        self.add(tapvid_metrics(*args, mode=self.mode, known=known))
