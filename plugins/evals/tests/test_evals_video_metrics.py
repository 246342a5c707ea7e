"""Metrics of depth, flow, masks, poses and tracks: the numbers that the field's programs give for the same inputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fourd_evals.camera_poses import CameraErrors, auc, rotation_angle, tartanair_errors, trajectory_errors
from fourd_evals.motion_masks import ForegroundIoU
from fourd_evals.point_tracks import DISTANCES, TRACK_NUMBERS, TAPVid, sample_queries, tapvid_metrics
from fourd_evals.point_tracks_3d import FIXED_DISTANCES, TAPVid3D, focal_length, tapvid3d_metrics
from fourd_evals.video_depth import DepthCrafterDepth, ImageDepth, PooledDepth
from fourd_evals.video_flow import FlowErrors, Pooling
from torch import Tensor

DATA = Path(__file__).parent / "data" / "video_metrics.npz"
"""Inputs, and what the public programs that the modules name answer."""


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    with np.load(DATA) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_depthcrafter_depth(stored: dict[str, Tensor]) -> None:
    metric = DepthCrafterDepth(cap=70.0, frames=50)
    metric.update(stored["crafter/pred"], stored["crafter/gt"])
    assert list(metric.compute().values()) == pytest.approx(stored["crafter/out"].tolist(), rel=1e-6)
    # A second video with a perfect answer of another scale and shift, and NaN for what is unknown: the plain mean.
    truth = torch.linspace(1, 60, 2 * 4 * 4).view(2, 4, 4)
    disparity = (1 / truth + 0.3) * 7
    truth[1] = torch.nan
    metric.update([disparity[0], disparity[1]], truth)
    expected = stored["crafter/out"] / 2 + torch.tensor([0.0, 0.0, 0.5])
    assert list(metric.compute().values()) == pytest.approx(expected.tolist(), rel=1e-5)


def test_depthcrafter_caps_and_clips_by_hand() -> None:
    # Disparity is right but for the last pixel, which is too far to be predicted; what is beyond the cap is not seen.
    truth = torch.tensor([[[1.0, 2.0, 4.0, 8.0, 10.0, 1e-3]]])
    metric = DepthCrafterDepth(cap=10.0)
    metric.update(1 / truth, truth)
    assert metric.compute()["abs_rel"] == pytest.approx(0, abs=1e-6)
    constant = DepthCrafterDepth(cap=10.0, frames=1)
    constant.update(torch.full((2, 1, 6), torch.nan), truth.repeat(2, 1, 1))
    depth = 1 / ((1 + 1 / 2 + 1 / 4 + 1 / 8) / 4)
    errors = [abs(depth - z) / z for z in (1, 2, 4, 8)]
    assert constant.compute()["abs_rel"] == pytest.approx(sum(errors) / 4, rel=1e-6)


def test_depthcrafter_lifts_negative_disparity_before_the_fit() -> None:
    truth, disparity = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1.1, 0.4, 0.3, -3.0])
    metric = DepthCrafterDepth(cap=10.0)
    metric.update(disparity.view(1, 1, 4), truth.view(1, 1, 4))
    scale, shift = np.polyfit([1.1, 0.4, 0.3, 1e-3], (1 / truth).numpy(), 1)
    errors = [abs(1 / (scale * d + shift) - z) / z for d, z in zip((1.1, 0.4, 0.3, 1e-3), truth.tolist(), strict=True)]
    assert metric.compute()["abs_rel"] == pytest.approx(sum(errors) / 4, rel=1e-5)


@pytest.mark.parametrize(("number", "align"), list(enumerate(["metric", "median", "scale", "lstsq", "lad", "lad2"])))
def test_pooled_depth(stored: dict[str, Tensor], number: int, align: str) -> None:
    metric = PooledDepth(align, cap=70.0)  # type: ignore[arg-type]
    metric.update(stored["cut3r/pred"], stored["cut3r/gt"])
    *numbers, pixels = stored["cut3r/out"][number].tolist()
    assert list(metric.compute().values()) == pytest.approx(numbers, rel=1e-5, abs=1e-7)
    assert int(metric.weight) == pixels


def test_pooled_depth_weighs_videos_by_their_pixels_and_clips() -> None:
    metric = PooledDepth("metric", clip=3.0)
    metric.update(torch.full((1, 2, 2), 2.0), torch.full((1, 2, 2), 1.0))
    metric.update(torch.full((3, 2, 2), 9.0), torch.full((3, 2, 2), 2.0))
    metric.update(torch.full((1, 2, 2), 9.0), torch.full((1, 2, 2), torch.nan))
    assert metric.compute()["abs_rel"] == pytest.approx((1 * 4 + 0.5 * 12) / 16)


def test_disparity_at_or_below_zero_is_depth_zero() -> None:
    truth = torch.tensor([[[1.0, 2.0, 4.0]]])
    metric = PooledDepth("metric", disparity=True)
    metric.update(torch.tensor([[[1.0, 0.5, -1.0]]]), truth)
    assert metric.compute()["abs_rel"] == pytest.approx(1 / 3)
    assert metric.compute()["rmse"] == pytest.approx(math.sqrt(16 / 3))


def test_depth_of_single_pictures() -> None:
    truth = torch.tensor([[[1.0, 2.0], [4.0, 0.0]], [[1.0, 1.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    predicted = torch.tensor([[[2.0, 2.0], [4.0, 9.0]], [[3.0, 3.0], [5.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]]])
    plain, fitted = ImageDepth(), ImageDepth(align=True)
    plain.update(predicted, truth)
    fitted.update(predicted, truth)
    assert plain.compute()["rmse"] == pytest.approx((math.sqrt(1 / 3) + math.sqrt((4 + 4 + 9 + 9) / 4)) / 3)
    assert plain.compute()["delta1"] == pytest.approx((2 / 3) / 3)
    # The second picture is exact after scale and shift; the first is fitted by the line 1.25 p - 1.
    line = [1.25 * p - 1 for p in (2.0, 2.0, 4.0)]
    rmse = math.sqrt(sum((a - b) ** 2 for a, b in zip(line, (1.0, 2.0, 4.0), strict=True)) / 3)
    assert fitted.compute()["rmse"] == pytest.approx(rmse / 3, rel=1e-5)
    crop = ImageDepth(crop=True)
    picture = torch.ones(1, 480, 640)
    wrong = picture.clone()
    wrong[0, :45] = wrong[0, 471:] = wrong[0, :, :41] = wrong[0, :, 601:] = 7.0
    crop.update(wrong, picture)
    assert crop.compute()["rmse"] == 0
    with pytest.raises(ValueError, match="480 x 640"):
        crop.update(truth, truth)


@pytest.mark.parametrize("pooling", ["pixels", "frames", "kitti"])
def test_flow_thresholds_are_strict(stored: dict[str, Tensor], pooling: Pooling) -> None:
    metric = FlowErrors(pooling)
    metric.update(stored["flow/pred"], stored["flow/gt"])
    assert list(metric.compute().values()) == pytest.approx(stored["flow/out"].tolist(), rel=1e-6)


def test_flow_poolings_differ_as_their_names_say() -> None:
    truth = torch.zeros(3, 2, 1, 4)
    truth[0, :, 0, 1:] = torch.nan  # one pixel
    truth[2] = torch.nan  # none
    predicted = torch.zeros(3, 2, 1, 4)
    predicted[0, 0] = 4.0
    expected = {"pixels": (4 / 5, 100 / 5), "frames": (2.0, 50.0), "kitti": (2.0, 100 / 5)}
    for pooling, (epe, outliers) in expected.items():
        metric = FlowErrors(pooling)  # type: ignore[arg-type]
        metric.update(predicted, truth)
        assert metric.compute()["epe"] == pytest.approx(epe) and metric.compute()["fl"] == pytest.approx(outliers)
    masked = FlowErrors()
    valid = torch.ones(3, 1, 4, dtype=torch.bool)
    valid[0] = False
    masked.update(predicted, truth, valid)
    assert masked.compute()["epe"] == 0 and int(masked.pixel_count) == 4


def _bits(packed: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy()).astype(bool)).view(6, 16, 20)


def test_foreground_iou(stored: dict[str, Tensor]) -> None:
    predicted, truth, valid = (_bits(stored[f"mask/{name}"]) for name in ("pred", "gt", "valid"))
    for void, frames, pooled in ((None, "davis", 0), (valid, "void", 1)):
        metric = ForegroundIoU()
        metric.update(predicted.float() * 0.6, truth, void)
        answer = metric.compute()
        assert answer["pooled"] == pytest.approx(float(stored["mask/pooled"][pooled]), rel=1e-6)
        assert answer["frames"] == pytest.approx(float(stored[f"mask/{frames}"].mean()), rel=1e-12)
    empty = ForegroundIoU(empty=0.0)
    empty.update(predicted, torch.where(valid, truth.float(), torch.nan))
    other = ForegroundIoU(empty=0.0)
    other.update(predicted, truth, valid)
    assert empty.compute() == other.compute()
    empty.reset()
    empty.update(predicted, truth)
    assert empty.compute()["frames"] == pytest.approx(float(stored["mask/torchmetrics"].mean()), rel=1e-6)


def _poses(stored: dict[str, Tensor], name: str) -> Tensor:
    return torch.cat([stored[name], torch.tensor([0.0, 0, 0, 1]).double().expand(24, 1, 4)], dim=1)


@pytest.mark.parametrize(("number", "align"), list(enumerate(["sim3", "se3", "scale", "none"])))
def test_trajectory_errors(stored: dict[str, Tensor], number: int, align: str) -> None:
    estimate, truth = _poses(stored, "pose/est"), _poses(stored, "pose/gt")
    by_one = trajectory_errors(estimate, truth, align)  # type: ignore[arg-type]
    by_five = trajectory_errors(estimate, truth, align, delta=5)  # type: ignore[arg-type]
    *expected, trans_five = stored["pose/out"][number].tolist()
    assert list(by_one.values()) == pytest.approx(expected, rel=1e-9)
    assert by_five["rpe_trans"] == pytest.approx(trans_five, rel=1e-9)


def test_other_statistics_and_tartanairs_own_formulas(stored: dict[str, Tensor]) -> None:
    estimate, truth = _poses(stored, "pose/est"), _poses(stored, "pose/gt")
    for align, mean in (("sim3", 0.046602456747547594), ("scale", 9.22700940134325)):
        errors = trajectory_errors(estimate, truth, align, statistic="mean")  # type: ignore[arg-type]
        assert errors["ate"] == pytest.approx(mean, rel=1e-9)
    expected = {
        "scale": 2.6730974213550516, "ate": 0.05049778410677382, "rpe_trans": 0.11284782214097154,
        "rpe_rot": 0.020506081978561675, "rpe_trans_all": 0.454791063945365, "rpe_rot_all": 0.018253846537626715,
    }  # fmt: skip
    assert tartanair_errors(estimate, truth) == pytest.approx(expected, rel=1e-7)


def test_cameras_that_stand_still_keep_their_scale(stored: dict[str, Tensor]) -> None:
    truth = _poses(stored, "pose/gt")
    metric = CameraErrors()
    metric.update(torch.eye(4).expand(24, 4, 4), truth)
    spread = (truth[:, :3, 3] - truth[:, :3, 3].mean(0)).square().sum(1).mean().sqrt()
    assert metric.compute()["ate"] == pytest.approx(float(spread), rel=1e-9)
    lost = truth.clone()
    lost[3] = torch.inf
    metric.reset()
    metric.update(truth, lost)
    assert metric.compute()["ate"] == pytest.approx(0, abs=1e-9) and metric.compute()["auc30"] == pytest.approx(1)
    with pytest.raises(ValueError, match="not finite"):
        metric.update(lost, truth)


def _turned(degrees: float, step: tuple[float, float, float]) -> Tensor:
    angle, pose = math.radians(degrees), torch.eye(4, dtype=torch.float64)
    pose[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pose[:3, 3] = torch.tensor(step)
    return pose


def test_auc_by_hand() -> None:
    truth = torch.stack([_turned(0, (0, 0, 0)), _turned(0, (1, 0, 0))])
    # 12.5 degrees of rotation, the same line backward: bins 12 .. 29 of 30 hold the pair.
    estimate = torch.stack([_turned(0, (0, 0, 0)), _turned(12.5, (-3, 0, 0))])
    assert auc(estimate, truth) == pytest.approx(18 / 30)
    line = torch.stack([_turned(0, (0, 0, 0)), _turned(1, (math.cos(0.2), math.sin(0.2), 0))])  # 11.46 degrees
    assert auc(line, truth) == pytest.approx(19 / 30)
    still = torch.stack([_turned(0, (0, 0, 0)), _turned(0, (0, 0, 0))])
    assert auc(still, truth) == 0
    assert float(rotation_angle(_turned(1e-7, (0, 0, 0))[:3, :3])) == pytest.approx(math.radians(1e-7), rel=1e-9)


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tapvid(stored: dict[str, Tensor], mode: str) -> None:
    occluded, tracks = stored["tracks/gt_occluded"], stored["tracks/gt_tracks"]
    args = (stored["tracks/query_tyx"][..., 0], occluded, tracks, stored["tracks/pred_occluded"])
    metric = TAPVid(mode)  # type: ignore[arg-type]
    metric.update(*args, stored["tracks/pred_tracks"])
    expected = dict(zip(TRACK_NUMBERS, stored[f"tracks/{mode}"].mean(1).tolist(), strict=True))
    assert metric.compute() == pytest.approx(expected, rel=1e-12)
    if mode == "first":
        each = tapvid_metrics(*args, stored["tracks/pred_tracks"], each_track=True)
        for name, values in zip(TRACK_NUMBERS, stored["tracks/each"], strict=True):
            torch.testing.assert_close(each[name], values, rtol=1e-12, atol=0, equal_nan=True)


def test_positions_that_are_not_known_do_not_count(stored: dict[str, Tensor]) -> None:
    frames = slice(0, 9)
    names = ("gt_occluded", "gt_tracks", "pred_occluded", "pred_tracks")
    tensors = [stored[f"tracks/{name}"] for name in names]
    asked = stored["tracks/query_tyx"][..., 0]
    known = torch.zeros_like(tensors[0])
    known[:, :, frames] = True
    whole = tapvid_metrics(asked, *tensors, known=known)
    part = tapvid_metrics(asked, *(tensor[:, :, frames] for tensor in tensors))
    for name in TRACK_NUMBERS:
        torch.testing.assert_close(whole[name], part[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_query_sampling(stored: dict[str, Tensor], mode: str) -> None:
    points, occluded = stored["queries/points"], stored["queries/occluded"]
    sampled = sample_queries(points, occluded, mode)  # type: ignore[arg-type]
    assert torch.equal(sampled.query.double(), stored[f"queries/{mode}"])
    assert torch.equal(sampled.tracks, points[sampled.origin]) and not sampled.occluded.all(1).any()
    if mode == "strided":
        assert torch.equal(sampled.origin, stored["queries/group"])


def _scene() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Points of which some are near each other: hidden, positions, hidden and positions as predicted, query frames."""
    generator = torch.Generator().manual_seed(5)
    tracks = torch.randn(6, 7, 3, generator=generator, dtype=torch.float64) * 0.02 + torch.tensor([0.2, 0.1, 3.0])
    tracks[4:] += torch.randn(2, 1, 3, generator=generator, dtype=torch.float64) * 0.5
    noise = torch.randn(6, 7, 3, generator=generator, dtype=torch.float64)
    predicted = 0.6 * (tracks + noise * 0.08 * torch.rand(6, 7, 1, generator=generator))
    hidden, claimed = (torch.rand(6, 7, generator=generator) < 0.3 for _ in range(2))
    return hidden, tracks, claimed, predicted, torch.tensor([0, 2, 6, 1, 3, 5])


def _looped(scaling: str, fixed: bool) -> list[float]:
    """AJ, APD and OA, written out point by point."""
    hidden, tracks, claimed, predicted, asked = (tensor.numpy() for tensor in _scene())
    points, frames = range(6), range(7)
    both = [(n, t) for n in points for t in frames if not hidden[n, t] and not claimed[n, t]]
    if scaling == "median_on_queries":
        both = [(n, t) for n, t in both if t == asked[n]]
    average = np.mean if scaling == "mean" else np.median
    norms = [float(average([np.linalg.norm(p[n, t]) for n, t in both])) for p in (tracks, predicted)]

    def scale(n: int, t: int) -> float:
        if scaling == "none":
            return 1.0
        if scaling == "reproduce_2d":
            return float(tracks[n, t, 2] / predicted[n, t, 2])
        if scaling in ("per_trajectory", "local_neighborhood"):
            return float(tracks[n, asked[n], 2] / predicted[n, asked[n], 2])
        return norms[0] / norms[1]

    entries = [(n, n, t, 1.0) for n in points for t in frames]  # whose scale, point, frame, weight
    if scaling == "local_neighborhood":
        entries = []
        for n in points:
            near = [(m, t) for m in points for t in frames if np.linalg.norm(tracks[m, t] - tracks[n, t]) < 0.05]
            weight = sum(not hidden[n, t] for t in frames) / max(1, sum(not hidden[m, t] for m, t in near))
            entries += [(n, m, t, weight) for m, t in near]
    jaccards, shares = [], []
    for k, metres in zip(DISTANCES, FIXED_DISTANCES, strict=True):
        seen = right = good = false = 0.0
        for owner, n, t, weight in entries:
            limit = metres if fixed else k * tracks[n, t, 2] / 300.0
            near = np.linalg.norm(predicted[n, t] * scale(owner, t) - tracks[n, t]) < limit
            seen += weight * (not hidden[n, t])
            right += weight * (near and not hidden[n, t])
            good += weight * (near and not hidden[n, t] and not claimed[n, t])
            false += weight * (not claimed[n, t] and (hidden[n, t] or not near))
        jaccards.append(good / (seen + false))
        shares.append(right / seen)
    agreeing = sum(w for _, n, t, w in entries if hidden[n, t] == claimed[n, t]) / sum(w for *_, w in entries)
    return [sum(jaccards) / 5, sum(shares) / 5, agreeing]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    "scaling",
    ["median", "mean", "none", "per_trajectory", "median_on_queries", "reproduce_2d", "local_neighborhood"],
)
def test_tapvid3d_scalings_against_loops(scaling: str, fixed: bool) -> None:
    hidden, tracks, claimed, predicted, asked = _scene()
    metric = TAPVid3D(scaling, fixed)  # type: ignore[arg-type]
    metric.update(hidden, tracks, claimed, predicted, 300.0, asked)
    assert list(metric.compute().values())[:3] == pytest.approx(_looped(scaling, fixed), rel=1e-12)


def test_tapvid3d_counts_for_each_track_and_where_known() -> None:
    hidden, tracks, claimed, predicted, asked = _scene()
    for scaling in ("none", "local_neighborhood"):
        each = tapvid3d_metrics(hidden, tracks, claimed, predicted, 300.0, scaling, asked, each_track=True)
        assert each["average_jaccard"].shape == (6,)
    known = torch.ones_like(hidden)
    known[:, 4:] = False
    broken = tracks.where(known[..., None], torch.tensor(1e6, dtype=torch.float64))
    one = tapvid3d_metrics(hidden, broken, claimed, predicted, 300.0, known=known)
    other = tapvid3d_metrics(*(tensor[:, :4] for tensor in (hidden, tracks, claimed, predicted)), 300.0)
    assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()})
    assert focal_length(400.0, 900.0, (512, 1024)) == pytest.approx(300.0)
    with pytest.raises(ValueError, match="needs the frames of the queries"):
        tapvid3d_metrics(hidden, tracks, claimed, predicted, 300.0, "per_trajectory")
