"""Windows of depth and cameras joined by the frames that they share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.data import Cameras, Maps, Prediction, Predictions
from fourd_core.errors import RecipeError
from fourd_core.geometry import (
    Similarity,
    cameras_from_rays,
    closest_rotation,
    from_integer_centres,
    intrinsics_matrix,
    rigid,
    safe_inverse,
)
from fourd_core.stitching import Stitch, Stitcher
from fourd_core.stitching_geometry import AffineDisparity, JointSimilarity, MedianScale, quantile, similarity_of_poses

DATA = Path(__file__).parent / "data"
SIZE = (20, 28)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def depth_of(values: Tensor) -> Maps:
    return Maps(values, kind="depth", unit="up to scale")


def joined(rule: Stitch, window: Tensor, before: Tensor) -> Tensor:
    return rule.join("depth", {"depth": depth_of(window)}, {"depth": depth_of(before)})["depth"].values


def close(mine: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Within a fraction of the largest number."""
    assert mine.shape == theirs.shape
    assert float((mine - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


# ---- depth alone


def test_affine_disparity_gives_the_references_numbers() -> None:
    stored = load_file(DATA / "l4p_ops_aligners.safetensors")
    shared, before = stored["in/pred"].transpose(1, 2), stored["in/target"].transpose(1, 2)
    kept = stored["in/full"].transpose(1, 2)  # the frames 0, 4, 8 and 12 of a window whose first eight are `shared`
    assert torch.equal(kept[:, :2], shared[:, ::4])
    window = torch.cat([shared, kept[:, 2:]], 1)
    answer = joined(AffineDisparity(), window, before)[:, [0, 4, 8, 9]]
    close(answer, stored["out/affine_inverse/applied"].transpose(1, 2))


def test_each_video_of_a_batch_is_aligned_by_itself() -> None:
    truth = 1 + 4 * torch.rand(2, 12, 1, 6, 7, generator=generator())
    scale, shift = (torch.tensor(values)[:, None, None, None, None] for values in ([0.5, 3.0], [0.02, -0.01]))
    distorted = 1 / (scale / truth + shift)
    close(joined(AffineDisparity(), distorted, truth[:, :5]), truth)
    close(joined(MedianScale(), scale * truth, truth[:, :5]), truth)


def test_a_few_wrong_depths_do_not_move_the_median() -> None:
    truth = 1 + 4 * torch.rand(1, 4, 1, 6, 7, generator=generator())
    window = 0.25 * truth
    window[:, :2, :, :2] = 1000.0
    close(joined(MedianScale(), window, truth[:, :2])[:, 2:], truth[:, 2:])


def test_depth_that_is_not_finite_is_left_out() -> None:
    truth = 1 + 4 * torch.rand(1, 4, 1, 6, 7, generator=generator())
    before = truth[:, :2].clone()
    before[0, 0, 0, 0] = torch.nan
    for rule in (AffineDisparity(), MedianScale()):
        close(joined(rule, 2 * truth, before), truth)


def test_disparity_that_is_not_positive_becomes_no_depth() -> None:
    near = torch.linspace(0.5, 1.0, 8).reshape(1, 2, 1, 2, 2)  # disparities
    window = torch.cat([near, near / 10], 1)
    values = joined(AffineDisparity(), 1 / window, safe_inverse(near * 2 - 0.9))
    close(values[:, :2], 1 / (near * 2 - 0.9))
    assert not values[:, 2:].any()


# ---- depth and cameras


class Chosen(JointSimilarity):
    """Compares stated points, window after window."""

    def __init__(self, points: list[Tensor]) -> None:
        super().__init__()
        self.stated = iter(points)

    def points(self, count: int) -> Tensor:
        return next(self.stated)


def matrices(stored: Tensor) -> Tensor:
    """`b 4 4 t` or `b 16 t` as `b t 4 4`."""
    return stored.reshape(len(stored), 4, 4, -1).permute(0, 3, 1, 2)


def test_three_windows_give_the_references_numbers() -> None:
    stored = load_file(DATA / "l4p_joint_align.safetensors")
    given = from_integer_centres(matrices(stored["in/intrinsics_b44t"])[..., :3, :3])
    first = cameras_from_rays(stored["in/rays_w0"].transpose(1, 2), (56, 56))
    rules = {"depth": AffineDisparity(), "cameras": Chosen([stored[f"in/point_subset_w{w}"] for w in (1, 2)])}
    stitcher, parts = Stitcher(rules), []
    for w in range(3):
        rays = stored[f"in/rays_w{w}"].transpose(1, 2)
        found = first if w == 0 else cameras_from_rays(rays, (56, 56), given[:, :16])
        depth = depth_of(stored[f"in/depth_logits_w{w}"].exp().transpose(1, 2))
        window = Predictions({"cameras": Cameras(found.ref_from_cam, first.intrinsics), "depth": depth})
        final = stitcher.add(window, 8)
        assert list(final) == ["cameras", "depth"]
        parts.append({name: item.frames(0, 16 if w == 2 else 8).tensors() for name, item in final.items()})
    poses = torch.cat([part["cameras"]["world_from_cam"] for part in parts], 1)
    close(poses, matrices(stored["out/traj3d_est_b16t"]))
    depth_values = torch.cat([part["depth"]["values"] for part in parts], 1)
    close(depth_values.transpose(1, 2)[..., 1::5, 1::5], stored["out/depth_est_b1thw"])


def rotations(count: int, seed: int) -> Tensor:
    near = torch.eye(3) + 0.2 * torch.randn(count, 3, 3, generator=generator(seed))
    return closest_rotation(near)


def scene(batch: int = 1, frames: int = 10, seed: int = 0) -> dict[str, Prediction]:
    """Cameras that move before a surface without symmetry."""
    moves = torch.randn(batch * frames, 3, generator=generator(seed))
    poses = rigid(rotations(batch * frames, seed + 1), moves).unflatten(0, (batch, frames))
    k = intrinsics_matrix(torch.tensor([30.0, 33.0]), torch.tensor([13.0, 11.0])).expand(batch, frames, 3, 3)
    depth = 2 + 3 * torch.rand(batch, frames, 1, *SIZE, generator=generator(seed + 2))
    return {"cameras": Cameras(poses, k, unit="up to scale"), "depth": depth_of(depth)}


def elsewhere(scene: Mapping[str, Prediction], scale: Tensor, seed: int = 5) -> dict[str, Prediction]:
    """The same scene in another world and unit."""
    cameras, depth = scene["cameras"], scene["depth"]
    assert isinstance(cameras, Cameras)
    assert isinstance(depth, Maps)
    n = len(scale)
    change = Similarity(scale, rotations(n, seed), torch.randn(n, 3, generator=generator(seed)))
    moved = Cameras(change.poses(cameras.world_from_cam), cameras.intrinsics, unit=cameras.unit)
    return {"cameras": moved, "depth": depth_of(change.depth(depth.values[:, :, 0])[:, :, None])}


def before(scene: Mapping[str, Prediction], frames: int) -> dict[str, Prediction]:
    return {name: item.frames(0, frames) for name, item in scene.items()}


def poses(item: Prediction) -> Tensor:
    assert isinstance(item, Cameras)
    return item.world_from_cam


def values(item: Prediction) -> Tensor:
    assert isinstance(item, Maps)
    return item.values


@pytest.mark.parametrize("overlap", [1, 2, 5])
def test_a_window_comes_back_into_the_world(overlap: int) -> None:
    truth = scene(batch=2)
    window = elsewhere(truth, torch.tensor([0.3, 4.0]))
    answer = JointSimilarity().join("cameras", window, before(truth, overlap))
    close(poses(answer["cameras"]), poses(truth["cameras"]))
    close(values(answer["depth"]), values(truth["depth"]))
    assert answer["cameras"].unit == "up to scale"


def test_a_third_of_the_depths_may_be_wrong() -> None:
    truth = scene()
    window = elsewhere(truth, torch.tensor([2.5]))
    wrong = torch.rand(1, 10, 1, *SIZE, generator=generator(9)) < 1 / 3
    window["depth"] = depth_of(torch.where(wrong, 30.0, values(window["depth"])))
    answer = JointSimilarity().join("cameras", window, before(truth, 6))
    close(poses(answer["cameras"]), poses(truth["cameras"]), 1e-4)
    close(values(answer["depth"])[~wrong], values(truth["depth"])[~wrong], 1e-4)


def test_without_depth_cameras_are_brought_together_alone() -> None:
    truth = scene(batch=2)
    window = elsewhere(truth, torch.tensor([0.3, 4.0]))
    answer = JointSimilarity("elsewhere").join("cameras", window, before(truth, 4))
    assert list(answer) == ["cameras"]
    close(poses(answer["cameras"]), poses(truth["cameras"]))


def test_cameras_that_stand_still_keep_their_scale() -> None:
    still = rigid(rotations(1, 0), torch.ones(1, 3)).expand(1, 6, 4, 4)
    target = rigid(rotations(1, 3), torch.tensor([[5.0, 0.0, 1.0]])).expand(1, 6, 4, 4)
    similarity = similarity_of_poses(still, target)
    assert similarity.scale.item() == 1
    close(similarity.poses(still), target)


def test_where_no_points_agree_cameras_and_the_median_depth_decide() -> None:
    """In the second video of the batch; the first one is as it should be."""
    truth = scene(batch=2)
    window = elsewhere(truth, torch.tensor([0.5, 0.5]))
    depth = values(window["depth"]).clone()
    depth[1] = 1 + 3 * torch.rand(10, 1, *SIZE, generator=generator(4))  # another surface altogether
    window["depth"] = depth_of(depth)
    answer = JointSimilarity().join("cameras", window, before(truth, 6))
    close(poses(answer["cameras"])[0], poses(truth["cameras"])[0])
    close(poses(answer["cameras"])[1, :, :3, :3], poses(truth["cameras"])[1, :, :3, :3])
    ratio = values(truth["depth"])[1, :6] / depth[1, :6]
    close(values(answer["depth"])[1], depth[1] * ratio.median())
    centres = poses(answer["cameras"])[1, :6, :3, 3].mean(0)
    close(centres, poses(truth["cameras"])[1, :6, :3, 3].mean(0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_hopeless_depth_does_not_stop_a_run(value: float) -> None:
    truth = scene()
    window = elsewhere(truth, torch.tensor([1.0]))
    window["depth"] = depth_of(torch.full_like(values(window["depth"]), value))
    answer = JointSimilarity().join("cameras", window, before(truth, 6))
    assert poses(answer["cameras"]).isfinite().all()
    close(poses(answer["cameras"]), poses(truth["cameras"]), 1e-4)


def test_a_tenth_of_the_points_is_drawn_and_always_the_same() -> None:
    rule = JointSimilarity()
    drawn = rule.points(9408)
    assert len(drawn) == 940
    assert len(set(drawn.tolist())) == 940
    assert int(drawn.max()) > 9000
    assert torch.equal(drawn, JointSimilarity().points(9408))
    assert len(JointSimilarity(share=1.0).points(50)) == 50
    assert len(rule.points(3)) == 1


def test_a_partner_that_is_no_depth_is_named() -> None:
    truth = scene()
    window = {**truth, "depth": Maps(values(truth["depth"]), kind="mask")}
    with pytest.raises(RecipeError, match=r"heads\.depth.*does not predict depth"):
        JointSimilarity().join("cameras", window, before(window, 3))


def test_more_numbers_than_torch_takes_a_quantile_of() -> None:
    row = torch.rand(2, 101, generator=generator())
    for q in (0.0, 0.5, 0.98, 0.987, 1.0):
        torch.testing.assert_close(quantile(row, q), row.quantile(q, dim=1))
    assert abs(float(quantile(torch.arange(2.0**24 + 9)[None], 0.98)) / 2**24 - 0.98) < 1e-5
