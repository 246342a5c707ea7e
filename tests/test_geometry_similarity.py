"""Similarities between point sets: exact, noisy, with half of the points wrong, hopeless."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fourd_core.geometry import (
    Similarity,
    closest_rotation,
    intrinsics_matrix,
    inverse,
    point_maps,
    project,
    rigid,
    similarity_between,
    transform,
    umeyama,
)

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth(seed: int = 0, batch: int = 3) -> Similarity:
    draw = torch.randn(batch, 4, 4, generator=generator(seed), dtype=DOUBLE)
    return Similarity(draw[:, 3, 3].abs() + 0.3, closest_rotation(draw[:, :3, :3]), draw[:, :3, 3])


def points(n: int, seed: int = 1, batch: int = 3) -> Tensor:
    return torch.randn(batch, n, 3, generator=generator(seed), dtype=DOUBLE) + torch.tensor([0.0, 0.0, 4.0]).double()


def spoiled(source: Tensor, similarity: Similarity, share: float, noise: float = 0.002, seed: int = 2) -> Tensor:
    """Targets with some noise, of which a share is anywhere."""
    draw = generator(seed)
    target = similarity.points(source) + noise * torch.randn(source.shape, generator=draw, dtype=DOUBLE)
    anywhere = 5 * torch.randn(source.shape, generator=draw, dtype=DOUBLE)
    count = round(share * source.shape[1])
    return torch.cat([anywhere[:, :count], target[:, count:]], 1)


def error(found: Similarity, expected: Similarity) -> float:
    return float((found.matrix() - expected.matrix()).abs().max())


def test_a_quarter_turn_by_hand() -> None:
    source = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    target = torch.tensor([[[1.0, 2.0, 3.0], [1.0, 4.0, 3.0], [-1.0, 2.0, 3.0], [1.0, 2.0, 5.0]]])
    found = umeyama(source, target)
    torch.testing.assert_close(found.scale, torch.tensor([2.0]))
    torch.testing.assert_close(found.rotation[0], torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    torch.testing.assert_close(found.translation[0], torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("n", [3, 4, 50])
def test_umeyama_finds_what_it_was_given(n: int) -> None:
    assert error(umeyama(points(n), truth().points(points(n))), truth()) < 1e-9


def test_umeyama_is_where_the_weighted_error_is_flat() -> None:
    source, target = points(20), truth().points(points(20)) + 0.1 * points(20, seed=5)
    weights = torch.rand(3, 20, generator=generator(), dtype=DOUBLE)
    found = umeyama(source, target, weights)
    parts = [found.scale, found.rotation, found.translation]
    scale, translation, turn = parts[0].requires_grad_(), parts[2].requires_grad_(), torch.zeros(3, 3, dtype=DOUBLE)
    turn.requires_grad_()
    zero = torch.zeros(3, dtype=DOUBLE)
    x, y, z = turn.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(3, 3, 3)
    moved = Similarity(scale, found.rotation @ torch.linalg.matrix_exp(cross), translation).points(source)
    cost = (weights * (moved - target).square().sum(-1)).sum()
    for gradient in torch.autograd.grad(cost, (scale, translation, turn)):
        assert gradient.abs().max() < 1e-9


def test_umeyama_never_mirrors() -> None:
    source = points(20)
    found = umeyama(source, source * torch.tensor([-1.0, 1.0, 1.0]).double())
    torch.testing.assert_close(torch.linalg.det(found.rotation), torch.ones(3, dtype=DOUBLE))


def test_gradcheck_of_umeyama() -> None:
    source = points(6, batch=1).requires_grad_()
    target = (truth(batch=1).points(points(6, batch=1)) + 0.1 * points(6, seed=5, batch=1)).requires_grad_()
    weights = (torch.rand(1, 6, generator=generator(), dtype=DOUBLE) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *inputs: (lambda s: (s.scale, s.rotation, s.translation))(umeyama(*inputs)), (source, target, weights)
    )


def test_gradients_of_symmetric_points_are_finite() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=DOUBLE)] * 3)[None].requires_grad_()
    umeyama(corners, truth(batch=1).points(corners.detach())).matrix().square().sum().backward()
    assert corners.grad is not None
    assert corners.grad.isfinite().all()


def test_weightless_and_unknown_points_do_not_count() -> None:
    source = points(30)
    target = truth().points(source)
    target[:, :5] = 100.0
    target[0, 7], source[1, 8] = torch.nan, torch.inf
    mask = torch.arange(30).expand(3, 30) >= 5
    assert error(umeyama(source, target, mask), truth()) < 1e-9
    assert error(umeyama(source, target), truth()) > 1


def test_degenerate_points_are_only_moved() -> None:
    same = torch.tensor([3.3, 4.1, 5.7]).expand(1, 10, 3)
    found = umeyama(same, same + 1)
    torch.testing.assert_close(found.matrix(), rigid(torch.eye(3), torch.ones(3))[None])
    nothing = umeyama(same, same + 1, torch.zeros(1, 10))
    assert torch.equal(nothing.matrix(), torch.eye(4)[None])
    unknown = torch.full((1, 4, 3), torch.nan)
    assert torch.equal(umeyama(unknown, unknown).matrix(), torch.eye(4)[None])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_outliers_do_not_move_the_similarity(share: float, seed: int) -> None:
    source = points(2000, seed=10 + seed)
    target = spoiled(source, truth(seed), share, seed=20 + seed)
    agreement = similarity_between(source, target, 0.01, generator(seed))
    assert agreement.found.all()
    assert error(agreement.similarity, truth(seed)) < 1e-3
    wrong = agreement.inliers[:, : round(share * 2000)].float().sum() / agreement.inliers.sum()
    assert wrong < 0.01
    if share:
        assert error(umeyama(source, target), truth(seed)) > 0.05


def test_outliers_that_agree_with_each_other_lose_to_the_majority() -> None:
    source = points(1000)
    target = truth(0).points(source)
    target[:, :450] = truth(7).points(source)[:, :450]
    agreement = similarity_between(source, target, 0.01)
    assert error(agreement.similarity, truth(0)) < 1e-6
    assert not agreement.inliers[:, :450].float().mean() > 0.05


def test_each_clip_has_its_own_threshold_and_answer() -> None:
    source = points(500)
    target = spoiled(source, truth(), 0.4, noise=0.01)
    target[1] = 3 * torch.randn(500, 3, generator=generator(), dtype=DOUBLE)
    agreement = similarity_between(source, target, torch.tensor([0.05, 0.01, 1e-4], dtype=DOUBLE))
    assert agreement.found.tolist() == [True, False, False]
    assert torch.equal(agreement.similarity.matrix()[1:], torch.eye(4, dtype=DOUBLE).expand(2, 4, 4))
    assert agreement.inliers[1:].count_nonzero() == 0
    assert error(agreement.similarity, truth()) > 0.1  # of the others
    torch.testing.assert_close(agreement.similarity.matrix()[0], truth().matrix()[0], rtol=0, atol=0.01)


def test_equal_seeds_give_equal_answers() -> None:
    source = points(200)
    target = spoiled(source, truth(), 0.5, noise=0.05)
    first, again = (similarity_between(source, target, 0.05, generator(3)).similarity.matrix() for _ in range(2))
    assert torch.equal(first, again)
    default, again = (similarity_between(source, target, 0.05).similarity.matrix() for _ in range(2))
    assert torch.equal(default, again)
    mine = generator(3)
    similarity_between(source, target, 0.05, mine)
    assert not torch.equal(mine.get_state(), generator(3).get_state())


def test_the_inliers_are_those_of_the_answer() -> None:
    source = points(2000)
    target = spoiled(source, truth(), 0.3, noise=0.01)
    agreement = similarity_between(source, target, 0.01)
    near = (agreement.similarity.points(source) - target).norm(dim=-1) < 0.01
    assert torch.equal(near, agreement.inliers)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_too_few_points_are_not_believed(n: int) -> None:
    source = points(n)
    assert not similarity_between(source, truth().points(source), 0.01).found.any()
    assert similarity_between(source, truth().points(source), 0.01, least=3).found.all() == (n >= 3)


def test_hopeless_points_give_the_identity() -> None:
    same = torch.ones(1, 100, 3)
    line = torch.arange(100.0)[None, :, None] * torch.tensor([1.0, 2.0, 3.0])
    unknown = torch.full((1, 100, 3), torch.nan)
    random = torch.randn(2, 1, 100, 3, generator=generator())
    for source, target in ((same, same), (line, line), (unknown, unknown), (random[0], random[1]), (line, same)):
        agreement = similarity_between(source, target, 0.01)
        assert not agreement.found.any()
        assert torch.equal(agreement.similarity.matrix(), torch.eye(4)[None])


def test_a_line_is_not_enough() -> None:
    along = points(200)[..., :1] * torch.tensor([1.0, 2.0, 3.0]).double()
    source = along + 0.003 * points(200, seed=4)
    target = truth().points(source) + 0.003 * points(200, seed=5)
    assert not similarity_between(source, target, 0.05).found.any()


def test_a_plane_is_enough() -> None:
    source = points(100) * torch.tensor([1.0, 1.0, 0.0]).double()
    agreement = similarity_between(source, truth().points(source), 0.01)
    assert agreement.found.all()
    assert error(agreement.similarity, truth()) < 1e-9


def test_unknown_depth_is_ignored() -> None:
    source = points(400)
    target = spoiled(source, truth(), 0.1)
    source[:, 80:] = torch.nan  # and half of the others are wrong
    agreement = similarity_between(source, target, 0.01)
    assert agreement.found.all()
    assert error(agreement.similarity, truth()) < 2e-3
    assert not agreement.inliers[:, 80:].any()


def test_gradients_reach_the_inliers_alone() -> None:
    source = points(200)
    target = spoiled(source, truth(), 0.5).requires_grad_()
    agreement = similarity_between(source, target, 0.02)
    agreement.similarity.matrix().square().sum().backward()
    assert target.grad is not None
    assert torch.equal(target.grad.abs().sum(-1) > 0, agreement.inliers)


def test_a_moved_world_looks_the_same() -> None:
    depth = torch.rand(3, 2, 4, 6, generator=generator(), dtype=DOUBLE) + 1
    k = intrinsics_matrix(*torch.tensor([[5.0, 6.0], [3.0, 2.0]], dtype=DOUBLE)).expand(3, 2, 3, 3)
    poses = rigid(closest_rotation(torch.randn(3, 2, 3, 3, generator=generator(), dtype=DOUBLE)), points(2))
    world = truth()
    moved = world.poses(poses)
    torch.testing.assert_close(torch.linalg.det(moved[..., :3, :3]), torch.ones(3, 2, dtype=DOUBLE))
    maps = point_maps(world.depth(depth), k, moved)
    old_maps = point_maps(depth, k, poses)
    torch.testing.assert_close(maps, world.points(old_maps.flatten(1, 3)).view_as(maps))
    seen = transform(inverse(moved)[:, :, None, None], maps)
    old_seen = transform(inverse(poses)[:, :, None, None], old_maps)
    torch.testing.assert_close(project(seen, k[:, :, None, None]), project(old_seen, k[:, :, None, None]))
