"""Errors of camera trajectories: absolute and relative after an alignment, and the area under the curve of angles.

Poses are `world_from_cam`, of any world and scale. Computed in float64.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics import Metric

from fourd_core.geometry.similarity import Similarity, umeyama

Alignment = Literal["sim3", "se3", "scale", "none"]
Statistic = Literal["rmse", "mean"]

AUC_DEGREES = 30


def aligned_poses(
    estimate: Float[Tensor, "t 4 4"], truth: Float[Tensor, "t 4 4"], by: Alignment = "sim3"
) -> Float64[Tensor, "t 4 4"]:
    """The estimate in the truth's world.

    Args:
        by: sim3: the similarity of least squares between the cameras' positions; se3: the same without scale; scale:
            its scale alone; none: as they are. Where all positions of the estimate agree its scale stays as it is.

    Source: Umeyama, PAMI 1991, as in evo's trajectory.align.
    """
    poses, goal = estimate.double(), truth.double()
    source, target = poses[:, :3, 3], goal[:, :3, 3]
    fit = umeyama(source, target)
    if by == "se3":
        fit = Similarity(torch.ones_like(fit.scale), fit.rotation, target.mean(0) - fit.rotation @ source.mean(0))
    elif by == "scale":
        fit = Similarity(fit.scale, torch.eye(3).to(fit.rotation), torch.zeros_like(fit.translation))
    return poses if by == "none" else fit.poses(poses)


def trajectory_errors(
    estimate: Float[Tensor, "t 4 4"],
    truth: Float[Tensor, "t 4 4"],
    align: Alignment = "sim3",
    delta: int = 1,
    statistic: Statistic = "rmse",
) -> dict[str, float]:
    """`ate` and `rpe_trans` (in the truth's unit) and `rpe_rot` (degrees) of one video.

    Args:
        delta: the relative errors are those of frames so far apart, of all such pairs; NaN where there is none.
        statistic: the root of the mean square, which the papers print, or the mean.

    Sources: Sturm et al., IROS 2012; evo, all pairs of `delta` frames; MonST3R and CUT3R, vo_eval.
    """
    poses, goal = aligned_poses(estimate, truth, align), truth.double()
    steps, true_steps = (_relative(p[:-delta], p[delta:]) for p in (poses, goal))
    errors = _relative(true_steps, steps)
    ate = torch.linalg.vector_norm(poses[:, :3, 3] - goal[:, :3, 3], dim=1)
    parts = {
        "ate": ate,
        "rpe_trans": torch.linalg.vector_norm(errors[:, :3, 3], dim=1),
        "rpe_rot": torch.rad2deg(rotation_angle(errors[:, :3, :3])),
    }
    return {name: _summary(values, statistic) for name, values in parts.items()}


def tartanair_errors(estimate: Float[Tensor, "t 4 4"], truth: Float[Tensor, "t 4 4"]) -> dict[str, float]:
    """Errors as TartanAir's own programs compute them, which are not those of `trajectory_errors`: never mix the two.

    `ate` is the root mean square after the *truth* was turned and moved onto the estimate, which is brought to its
    size by `scale`, the inverse of the scale of least squares from the truth to the estimate. `rpe_trans` and `rpe_rot`
    (radians) are root mean squares over consecutive frames, `rpe_trans_all` and `rpe_rot_all` means over all ordered
    pairs, each frame with itself too; the estimate is not scaled there. (Of 100 frames or more its programs draw 10,000
    of these pairs.)

    Source: Wang et al., TartanAir, IROS 2020; tartanair_tools, evaluation/evaluate_ate_scale.py and evaluate_rpe.py.
    """
    poses, goal = estimate.double(), truth.double()
    fit = umeyama(goal[:, :3, 3], poses[:, :3, 3])
    off = (poses[:, :3, 3] - fit.points(goal[:, :3, 3])) / fit.scale
    count = len(goal)
    every = torch.cartesian_prod(torch.arange(count), torch.arange(count)).unbind(1)
    errors = {"scale": float(1 / fit.scale), "ate": _summary(torch.linalg.vector_norm(off, dim=1), "rmse")}
    ends = torch.arange(count - 1)
    for suffix, statistic, (first, second) in (("", "rmse", (ends, ends + 1)), ("_all", "mean", every)):
        steps, true_steps = (_relative(p[second], p[first]) for p in (poses, goal))
        apart = _relative(steps, true_steps)
        errors[f"rpe_trans{suffix}"] = _summary(torch.linalg.vector_norm(apart[:, :3, 3], dim=1), statistic)
        errors[f"rpe_rot{suffix}"] = _summary(rotation_angle(apart[:, :3, :3]), statistic)
    return errors


def auc(estimate: Float[Tensor, "t 4 4"], truth: Float[Tensor, "t 4 4"], degrees: int = AUC_DEGREES) -> float:
    """The area under the curve of pairs of frames whose error is below 1, 2 .. `degrees` degrees; a fraction.

    A pair's error is the larger one of the angle between the relative rotations and the angle between the lines along
    which the cameras moved. Where a camera did not move, the lines are at right angles.

    Source: Wang et al., VGGT, 2025, evaluation of camera poses (AUC@30): a histogram of whole degrees, accumulated.
    """
    first, second = torch.triu_indices(len(truth), len(truth), offset=1)
    step, true_step = (_relative(p.double()[first], p.double()[second]) for p in (estimate, truth))
    turned = torch.rad2deg(rotation_angle(step[:, :3, :3].mT @ true_step[:, :3, :3]))
    error = torch.maximum(turned, torch.rad2deg(_line_angle(step[:, :3, 3], true_step[:, :3, 3])))
    counts = torch.histc(error[error <= degrees], bins=degrees, min=0, max=degrees)
    return float((counts.cumsum(0) / len(error)).mean()) if len(error) else float("nan")


class CameraErrors(Metric):
    """ATE, RPE and AUC@30 of each video and their plain mean over videos: `ate`, `rpe_trans`, `rpe_rot`, `auc30`.

    Args:
        align: as in `aligned_poses`; AUC needs none.
    """

    full_state_update = False
    names = ("ate", "rpe_trans", "rpe_rot", f"auc{AUC_DEGREES}")
    sums: Tensor
    counts: Tensor

    def __init__(self, align: Alignment = "sim3") -> None:
        super().__init__()
        self.align = align
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, estimate: Float[Tensor, "t 4 4"], truth: Float[Tensor, "t 4 4"]) -> None:
        """One video; a frame whose true pose is not finite is left out, and what one frame cannot tell does not count.

        Raises:
            ValueError: a pose of the estimate is not finite where the truth is known.
        """
        known = truth.isfinite().flatten(1).all(dim=1)
        poses, goal = estimate[known].cpu(), truth[known].cpu()
        if not poses.isfinite().all():
            raise ValueError("the estimated trajectory has a pose that is not finite where the true one is known")
        if not len(goal):
            return
        errors = [*trajectory_errors(poses, goal, self.align).values(), auc(poses, goal)]
        values = torch.tensor(errors, dtype=torch.float64)
        self.sums += values.nan_to_num(0.0).to(self.sums)
        self.counts += values.isfinite().to(self.counts)

    def compute(self) -> dict[str, float]:
        """The means over videos; NaN where there was none."""
        return dict(zip(self.names, (self.sums / self.counts).tolist(), strict=True))


def rotation_angle(rotation: Float64[Tensor, "*b 3 3"]) -> Float64[Tensor, "*b"]:
    """By how much a rotation turns, in radians; accurate at every angle but near a half turn (1e-8)."""
    skew = rotation - rotation.mT
    sine = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1).norm(dim=-1)
    return torch.atan2(sine, rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)


def _summary(errors: Float64[Tensor, " n"], statistic: Statistic) -> float:
    return float(errors.mean() if statistic == "mean" else errors.square().mean().sqrt())


def _relative(first: Float64[Tensor, "n 4 4"], second: Float64[Tensor, "n 4 4"]) -> Float64[Tensor, "n 4 4"]:
    """`second` as seen from `first`."""
    return torch.linalg.inv(first) @ second


def _line_angle(x: Float64[Tensor, "n 3"], y: Float64[Tensor, "n 3"]) -> Float64[Tensor, " n"]:
    """The angle between two lines, from 0 to a right angle; a right angle where a direction has no length."""
    sine = torch.linalg.vector_norm(torch.linalg.cross(x, y), dim=-1)
    return torch.where((x == 0).all(-1) | (y == 0).all(-1), torch.pi / 2, torch.atan2(sine, (x * y).sum(-1).abs()))
