"""Point tracks of a system measured on videos with true tracks: TAP-Vid's numbers, and TAPVid-3D's where depth is
predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import attrs
import torch
from attrs.validators import ge, optional
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fourd_core.data import VISIBLE, Cameras, Queries, Tracks
from fourd_core.geometry import unproject
from fourd_core.sinks import MemorySink
from fourd_core.system import System
from fourd_evals.l4p_eval import DIS_MISSING
from fourd_evals.looks import CHUNK, Look
from fourd_evals.paper import our_name
from fourd_evals.point_tracks import SIDE, QueryMode, TAPVid, sample_queries
from fourd_evals.point_tracks_3d import Scaling, TAPVid3D, focal_length
from fourd_evals.trivial_answers import chained, dis_flow, pair_flows
from fourd_evals.whole_videos import VideoMetric, VideoMetricConfig

MEMORY = 8 * 2**30
"""Bytes that the tracks of one video may take."""


class Asked(NamedTuple):
    """What is asked about one video, and the truth: points `n`, frames `t`, pixels of the video."""

    frame: Int64[Tensor, " n"]
    xy: Float[Tensor, "n 2"]
    tracks: Float[Tensor, "n t 2"]
    occluded: Bool[Tensor, "n t"]
    known: Bool[Tensor, "n t"]
    xyz: Float[Tensor, "n t 3"] | None
    """In the camera, metres."""
    intrinsics: Float[Tensor, "t 3 3"] | None


class Answer(NamedTuple):
    """Positions in pixels of the video, what is said to be hidden, and z, of any scale."""

    tracks: Float[Tensor, "n t 2"]
    occluded: Bool[Tensor, "n t"]
    depth: Float[Tensor, "n t"] | None


class PointTracks(VideoMetric):
    """Tracked points: TAP-Vid's AJ, APD and OA; TAPVid-3D's where the head predicts depth and the truth has it.

    Trivial answers: points that stand still, and points carried by OpenCV's DIS flow; both are always seen, and stay at
    their true depth of the query.
    """

    title = "Point tracks"
    needs, kind = "tracks", "tracks"

    @attrs.frozen(kw_only=True)
    class Config(VideoMetricConfig):
        """The protocol."""

        queries: QueryMode = "first"
        """Where points are named: first: where they are seen first, or where the data set says; strided: everywhere
        they are seen in every fifth frame, for trackers of both directions."""
        points: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """No more than so many queries of a video, evenly taken; none: all."""
        scaling: Scaling = "median"
        """How 3D positions are brought to the truth's scale."""
        fixed: bool = False
        """Of 3D positions: 1 .. 256 cm instead of 1 .. 16 pixels."""
        table: str = attrs.field(default="3", validator=attrs.validators.in_(("3", "4")))
        """Which of L4P's tables stands beside: 3 (2D) or 4 (3D)."""

    @property
    def table(self) -> str:  # type: ignore[override]
        """The table that is asked for."""
        return str(self.config.table)

    @property
    def printed(self) -> Mapping[str, str]:  # type: ignore[override]
        """Its columns; table 3 has APD and OA over all its data sets alone."""
        if self.table == "4":
            return {"3D-AJ": "3D-AJ", "3D-APD": "APD", "3D-OA": "OA"}
        return {"2D-AJ": "2D-AJ", **({"APD": "APD", "OA": "OA"} if self.config.paper == "Overall" else {})}

    def heads(self, system: System, head: str) -> list[str]:
        """The tracker alone."""
        return [head]

    def scores(self, system: System) -> dict[str, Any]:
        """2D and 3D of each row."""
        self._dis = dis_flow() if self.config.trivial else None
        names = [our_name(system), *(["static points"] if self.config.trivial else [])]
        names += ["chained DIS flow"] if self._dis else []
        return {n: (TAPVid(self.config.queries), TAPVid3D(self.config.scaling, self.config.fixed)) for n in names}

    def notes(self) -> Iterator[str]:
        """Where DIS is missing."""
        if self.config.trivial and self._dis is None:
            yield DIS_MISSING

    def add(self, look: Look, head: str, scores: Mapping[str, Any]) -> None:
        """Score one video; one in which nothing can be asked is left out."""
        asked = self._asked(look)
        if not len(asked.frame):
            return
        answers = [_tracked(look, head, asked), *self._trivial(look, asked)] if len(scores) > 1 else [
            _tracked(look, head, asked)
        ]  # fmt: skip
        for (flat, solid), answer in zip(scores.values(), answers, strict=True):
            self._score(look, asked, answer, flat, solid)

    def _asked(self, look: Look) -> Asked:
        truth, intrinsics = _true_tracks(look)
        tracks, occluded = truth.xy[0].transpose(0, 1), truth.visibility[0].T < VISIBLE
        known = truth.live[0].T
        stated = getattr(look.video, "queries", None)
        if stated is not None and self.config.queries == "first":
            origin, frame, xy = torch.arange(len(stated)), stated[:, 0].round().long(), stated[:, 1:]
        else:
            sampled = sample_queries(tracks, occluded | ~known, self.config.queries)
            origin, frame, xy = sampled.origin, sampled.query[:, 0].long(), sampled.query[:, [2, 1]]
        if self.config.points is not None and len(frame) > self.config.points:
            chosen = torch.arange(self.config.points) * len(frame) // self.config.points
            origin, frame, xy = origin[chosen], frame[chosen], xy[chosen]
        xyz = truth.xyz_camera
        if xyz is None and truth.depth is not None and intrinsics is not None:
            xyz = unproject(truth.xy, truth.depth, intrinsics[None, :, None])
        points = None if xyz is None else xyz[0].transpose(0, 1)[origin]
        return Asked(frame, xy, tracks[origin], occluded[origin], known[origin], points, intrinsics)

    def _trivial(self, look: Look, asked: Asked) -> Iterator[Answer]:
        seen, count = torch.zeros_like(asked.occluded), asked.occluded.shape[1]
        rows = torch.arange(len(asked.frame))
        depth = None if asked.xyz is None else asked.xyz[rows, asked.frame, 2][:, None].expand(-1, count)
        yield Answer(asked.xy[:, None].expand(-1, count, -1), seen, depth)
        if self._dis is not None:
            flows = pair_flows(self._dis, look, 0, count)
            places = chained(flows, asked.frame, look.view.to_view(asked.xy), count)
            yield Answer(look.view.to_video(places), seen, depth)

    def _score(self, look: Look, asked: Asked, answer: Answer, flat: TAPVid, solid: TAPVid3D) -> None:
        height, width = look.video.size
        ratio = torch.tensor([SIDE / width, SIDE / height])
        flat.update(
            asked.frame[None], asked.occluded[None], (asked.tracks * ratio)[None],
            answer.occluded[None], (answer.tracks * ratio)[None], asked.known[None],
        )  # fmt: skip
        if asked.xyz is None or asked.intrinsics is None or answer.depth is None:
            return
        points = unproject(answer.tracks, answer.depth, asked.intrinsics[None])
        pinhole = asked.intrinsics[0].double()
        focal = focal_length(float(pinhole[0, 0]), float(pinhole[1, 1]), look.video.size)
        known = asked.known & asked.xyz.isfinite().all(-1)
        solid.update(asked.occluded, asked.xyz, answer.occluded, points, focal, asked.frame, known)

    def columns(self, scores: Any) -> dict[str, float]:
        """Percent."""
        names = {"AJ": "average_jaccard", "APD": "average_pts_within_thresh", "OA": "occlusion_accuracy"}
        flat = scores[0].compute()
        columns = {("2D-AJ" if name == "AJ" else name): 100 * flat[key] for name, key in names.items()}
        if scores[1].update_called:
            solid = scores[1].compute()
            columns |= {f"3D-{name}": 100 * solid[key] for name, key in names.items()}
        return columns

    def score(self, columns: Mapping[str, float]) -> float:
        """3D-AJ where there is one, else 2D-AJ."""
        return columns.get("3D-AJ", columns["2D-AJ"])


def _true_tracks(look: Look) -> tuple[Tracks, Float[Tensor, "t 3 3"] | None]:
    """All frames' tracks, and the intrinsics where they are known."""
    video, parts, pinholes = look.video, [], []
    for first in range(0, video.frame_count, CHUNK):
        known = video.truth(range(first, min(first + CHUNK, video.frame_count)))
        parts.append(cast(Tracks, known["tracks"]))
        if "cameras" in known:
            pinholes.append(cast(Cameras, known["cameras"]).intrinsics[0])
    names = parts[0].tensors()
    whole = parts[0].with_tensors({name: torch.cat([part.tensors()[name] for part in parts], 1) for name in names})
    if pinholes:
        return whole, torch.cat(pinholes).float()
    fixed = video.intrinsics
    return whole, None if fixed is None else fixed.float().expand(video.frame_count, 3, 3)


def _tracked(look: Look, head: str, asked: Asked) -> Answer:
    """The system's answer; where its tracker says nothing, a point is hidden."""
    queries = Queries(asked.frame[None], asked.xy[None].float())
    sink = MemorySink(look.view, "view", look.video.frame_count, MEMORY)
    for part in look.parts(queries):
        sink.put(part)
    tracks = cast(Tracks, sink.whole[head])
    depth = None if tracks.depth is None else tracks.depth[0].T
    return Answer(tracks.xy[0].transpose(0, 1), tracks.visibility[0].T <= VISIBLE, depth)
