"""The tasks of L4P measured on videos with truth: depth, flow, motion masks, cameras, tracks.

Each is a component of the evaluation stage. The protocols are those of `video_depth`, `video_flow`, `motion_masks`,
`camera_poses`, `point_tracks` and `point_tracks_3d`.

Source: Badki et al., L4P, 2025, section 4 and supplement; it names the protocols and leaves their details open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import attrs
import torch
from attrs.validators import gt, optional

from fourd_core.data import Cameras, Maps
from fourd_core.interfaces import Dataset
from fourd_core.system import System
from fourd_evals.camera_poses import Alignment as PoseAlignment
from fourd_evals.camera_poses import CameraErrors
from fourd_evals.depth_alignment import Alignment
from fourd_evals.looks import CHUNK, ComparedDepth, Look, TrueDepth
from fourd_evals.motion_masks import THRESHOLD, ForegroundIoU
from fourd_evals.paper import our_name
from fourd_evals.trivial_answers import MeanDisparity, backward_flows, dis_flow
from fourd_evals.video_depth import DepthCrafterDepth, FrameMaps, ImageDepth, PooledDepth, resized
from fourd_evals.video_flow import FlowErrors, Pooling
from fourd_evals.whole_videos import VideoMetric, VideoMetricConfig

FAST = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Pixels of flow above which a pixel may be said to move."""
STILL = 1e-5
"""Metres: a camera that never moves farther stands still."""
DIS_MISSING = "the rows of DIS flow are left out: its plugin is not installed (fourd-plugin-dis)"
Compared = Literal["video", "view"]


class VideoDepth(VideoMetric):
    """Depth of whole videos: AbsRel, RMSE, delta1 after the protocol's alignment.

    Trivial answers: the same depth everywhere in a video, and the mean disparity of the true depth of all these videos,
    aligned as the system's.
    """

    title = "Video depth"
    needs, kind, table = "depth", "depth", "1"
    printed: ClassVar[Mapping[str, str]] = {"AbsRel": "AbsRel", "delta1": "delta1"}

    @attrs.frozen(kw_only=True)
    class Config(VideoMetricConfig):
        """The protocol, by default the one that L4P's table 1 follows."""

        protocol: Literal["depthcrafter", "monst3r", "probe3d"] = "depthcrafter"
        """depthcrafter: one scale and shift per video, fitted in disparity, means over frames and videos; monst3r (and
        CUT3R): one alignment of depth per video, videos weigh as their pixels; probe3d: each frame on its own."""
        align: Alignment = "scale"
        """How monst3r aligns; of probe3d, lstsq aligns and anything else does not."""
        cap: float | None = attrs.field(default=None, validator=optional(gt(0)))
        """Truth at so many metres or beyond does not count; none: what the data set's protocol says, or all counts."""
        clip: float | None = attrs.field(default=None, validator=optional(gt(0)))
        """Of monst3r, the farthest prediction in metres (Sintel: 70)."""
        crop: bool = False
        """Of probe3d, score the middle of NYUv2's pictures alone (Eigen's crop)."""
        pixels: Compared = "video"
        """At whose pixels: the truth's, or those of the network's view."""

    def begin(self, system: System, data: Dataset, scores: dict[str, Any]) -> None:
        """The mean depth map, where trivial answers are asked for."""
        self._cap = self.config.cap
        self._mean = MeanDisparity()
        if not self.config.trivial:
            return
        for look in self._looks(system, data):
            for first in range(0, look.video.frame_count, CHUNK):
                self._mean.add(look.truth("depth", first, min(CHUNK, look.video.frame_count - first)))

    def scores(self, system: System) -> dict[str, Any]:
        """One for each row."""
        names = [our_name(system), *(["constant depth", "mean depth map"] if self.config.trivial else [])]
        return {name: self._scorer() for name in names}

    def _scorer(self) -> DepthCrafterDepth | PooledDepth | ImageDepth:
        config = self.config
        if config.protocol == "depthcrafter":
            return DepthCrafterDepth(cap=config.cap or torch.inf)
        if config.protocol == "monst3r":
            return PooledDepth(config.align, config.cap, config.clip)
        return ImageDepth(align=config.align == "lstsq", crop=config.crop)

    def add(self, look: Look, head: str, scores: Mapping[str, Any]) -> None:
        """Score one video; its answers are kept on the view's grid."""
        depth = torch.cat([cast(Maps, part.predictions[head]).values[0, :, 0] for part in look.parts()])
        truth = TrueDepth(look)
        cap = self.config.cap or getattr(look.video, "depth_cap", None)
        ours, *trivial = scores.values()
        disparity = self.config.protocol == "depthcrafter"
        self._score(ours, ComparedDepth(look, 1 / depth if disparity else depth), truth, cap)
        if trivial:
            mean = self._mean.map()
            for scorer, answer in zip(trivial, (torch.ones_like(mean), mean), strict=True):
                maps = [answer if disparity else 1 / answer] * len(truth)
                self._score(scorer, maps, truth, cap)

    def _score(self, scorer: Any, predicted: FrameMaps, truth: FrameMaps, cap: float | None) -> None:
        if isinstance(scorer, ImageDepth):
            for number in range(len(truth)):
                goal = truth[number].nan_to_num(0.0)
                goal = goal if cap is None else goal.where(goal < cap, 0.0)
                scorer.update(resized(predicted[number].nan_to_num(0.0), goal.shape, 1)[None], goal[None])
            return
        scorer.cap = (torch.inf if cap is None else cap) if isinstance(scorer, DepthCrafterDepth) else cap
        scorer.update(predicted, truth)

    def columns(self, scores: Any) -> dict[str, float]:
        """By the paper's names."""
        numbers = scores.compute()
        names = {"AbsRel": "abs_rel", "delta1": "delta1", "RMSE": "rmse"}
        return {ours: numbers[name] for ours, name in names.items() if name in numbers}

    def score(self, columns: Mapping[str, float]) -> float:
        """The less AbsRel the better (RMSE where there is none)."""
        return -columns.get("AbsRel", columns["RMSE"])


class VideoFlow(VideoMetric):
    """Flow from each frame to the one before it: EPE, the percent of pixels below 1 pixel, Fl.

    Trivial answers: no motion, and OpenCV's DIS at the network's size.
    """

    title = "Video flow"
    needs, kind, table = "flow", "flow", "2"
    printed: ClassVar[Mapping[str, str]] = {"EPE": "EPE", "EPE<1": "EPE<1"}

    @attrs.frozen(kw_only=True)
    class Config(VideoMetricConfig):
        """The protocol, by default L4P's: at the network's pixels, with the truth at the nearest pixel."""

        pooling: Pooling = "pixels"
        """pixels: all at once; frames: the mean over frames; kitti: frames, but Fl over all pixels at once."""
        pixels: Compared = "view"
        """In whose pixels: the network's (L4P: 224 x 224), or the video's."""

    def scores(self, system: System) -> dict[str, Any]:
        """One for each row."""
        self._dis = dis_flow() if self.config.trivial else None
        names = [
            our_name(system),
            *(["zero flow"] if self.config.trivial else []),
            *(["DIS flow"] if self._dis else []),
        ]
        return {name: FlowErrors(self.config.pooling) for name in names}

    def notes(self) -> Iterator[str]:
        """Where DIS is missing."""
        if self.config.trivial and self._dis is None:
            yield DIS_MISSING

    def add(self, look: Look, head: str, scores: Mapping[str, Any]) -> None:
        """Score one video, a window at a time."""
        ours, *trivial = scores.values()
        for part in look.parts():
            truth = look.truth("flow", part.first, part.frames)
            flow = cast(Maps, part.predictions[head]).values[0]
            ours.update(look.compared(flow, flow=True), truth)
            if trivial:
                trivial[0].update(torch.zeros_like(truth), truth)
            if self._dis is not None:
                answers = look.view.flow_to_video(backward_flows(self._dis, look, part.first, part.frames))
                trivial[1].update(look.compared(answers, flow=True), truth)

    def columns(self, scores: Any) -> dict[str, float]:
        """By the paper's names."""
        numbers = scores.compute()
        return {"EPE": numbers["epe"], "EPE<1": 100 * numbers["px1"], "Fl": numbers["fl"]}

    def score(self, columns: Mapping[str, float]) -> float:
        """The less EPE the better."""
        return -columns["EPE"]


class MotionMasks(VideoMetric):
    """Masks of what moves in the world: intersection over union in percent, pooled and as the mean over frames.

    Trivial answers: everything moves, and what DIS says moves faster than a threshold in the picture, with the best of
    several thresholds.
    """

    title = "Motion masks"
    needs, kind, table = "motion", "mask", "unnumbered"
    printed: ClassVar[Mapping[str, str]] = {"IoU": "foreground IoU"}

    @attrs.frozen(kw_only=True)
    class Config(VideoMetricConfig):
        """The protocol; L4P states none."""

        threshold: float = THRESHOLD
        """The probability above which a pixel is said to move."""
        empty: float = 1.0
        """The IoU of a frame in which nothing moves and nothing is said to: 1 (DAVIS) or 0 (torchmetrics)."""
        pixels: Compared = "view"
        """At whose pixels."""

    def scores(self, system: System) -> dict[str, Any]:
        """One for each row; of the flow's magnitude, one for each threshold."""
        self._dis = dis_flow() if self.config.trivial else None
        scores: dict[str, Any] = {our_name(system): self._scorer()}
        if self.config.trivial:
            scores["everything moves"] = self._scorer()
        if self._dis is not None:
            scores["DIS flow, faster than the best threshold"] = {pixels: self._scorer() for pixels in FAST}
        return scores

    def _scorer(self) -> ForegroundIoU:
        return ForegroundIoU(self.config.threshold, self.config.empty)

    def notes(self) -> Iterator[str]:
        """Where DIS is missing."""
        if self.config.trivial and self._dis is None:
            yield DIS_MISSING

    def add(self, look: Look, head: str, scores: Mapping[str, Any]) -> None:
        """Score one video, a window at a time."""
        ours, *trivial = scores.values()
        for part in look.parts():
            truth = look.truth("motion", part.first, part.frames)[:, 0]
            mask = cast(Maps, part.predictions[head]).values[0]
            ours.update(look.compared(mask)[:, 0], truth)
            if trivial:
                trivial[0].update(torch.ones_like(truth), truth)
            if self._dis is not None:
                flows = backward_flows(self._dis, look, part.first, part.frames)
                moving = look.compared(flows.norm(dim=1, keepdim=True))[:, 0]
                for pixels, scorer in trivial[1].items():
                    scorer.update((moving > pixels).float(), truth)

    def columns(self, scores: Any) -> dict[str, float]:
        """Percent; of several thresholds the best."""
        if isinstance(scores, dict):
            return max((self.columns(one) for one in scores.values()), key=lambda columns: columns["IoU"])
        numbers = scores.compute()
        return {"IoU": 100 * numbers["pooled"], "IoU, mean of frames": 100 * numbers["frames"]}

    def score(self, columns: Mapping[str, float]) -> float:
        """The pooled IoU."""
        return columns["IoU"]


class CameraPoses(VideoMetric):
    """Trajectories: ATE, RPE of translation and rotation after Sim(3), AUC@30.

    Trivial answer: a camera that stands still.
    """

    title = "Camera poses"
    needs, kind, table = "cameras", "cameras", ""
    printed: ClassVar[Mapping[str, str]] = {}

    @attrs.frozen(kw_only=True)
    class Config(VideoMetricConfig):
        """The protocol of MonST3R and CUT3R."""

        align: PoseAlignment = "sim3"
        """How the trajectory is brought to the true one."""

    def scores(self, system: System) -> dict[str, Any]:
        """One for each row."""
        self._mended = self._still = 0
        names = [our_name(system), *(["static camera"] if self.config.trivial else [])]
        return {name: CameraErrors(self.config.align) for name in names}

    def notes(self) -> Iterator[str]:
        """How many poses were none."""
        if self._mended:
            yield f"{self._mended} predicted poses are not finite; the camera counts as standing still there"
        if self._still:
            yield f"{self._still} videos whose camera stays where it is are left out: any trajectory fits them"

    def add(self, look: Look, head: str, scores: Mapping[str, Any]) -> None:
        """Score one video, if its camera goes anywhere."""
        poses = torch.cat([cast(Cameras, part.predictions[head]).world_from_cam[0] for part in look.parts()])
        truth = torch.cat([
            cast(Cameras, look.video.truth(range(first, min(first + CHUNK, len(poses))))["cameras"]).world_from_cam[0]
            for first in range(0, len(poses), CHUNK)
        ])  # fmt: skip
        if (truth[:, :3, 3] - truth[:1, :3, 3]).norm(dim=1).max() <= STILL:
            self._still += 1
            return
        still = torch.eye(4).expand(len(poses), 4, 4)
        last, answers = still[0], []
        for pose in poses:
            last = pose if pose.isfinite().all() else last
            answers.append(last)
        self._mended += int((~poses.isfinite().flatten(1).all(1)).sum())
        for scorer, answer in zip(scores.values(), (torch.stack(answers), still), strict=False):
            scorer.update(answer, truth)

    def columns(self, scores: Any) -> dict[str, float]:
        """Lengths in the truth's unit, angles in degrees, AUC in percent."""
        numbers = scores.compute()
        names = {"ATE (m)": "ate", "RPE trans (m)": "rpe_trans", "RPE rot (deg)": "rpe_rot"}
        return {**{ours: numbers[name] for ours, name in names.items()}, "AUC@30": 100 * numbers["auc30"]}

    def score(self, columns: Mapping[str, float]) -> float:
        """The less ATE the better."""
        return -columns["ATE (m)"]
