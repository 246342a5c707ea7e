"""Scale and shift of depth and disparity: exact, weighted, with half of the numbers wrong, degenerate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fourd_core.geometry import (
    Affine,
    aligned_in_disparity,
    fit_affine,
    fit_affine_robust,
    fit_scale,
    safe_inverse,
)

Fit = Callable[..., Affine]
AFFINE: list[Fit] = [fit_affine, fit_affine_robust]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal(*shape: int, seed: int = 0) -> Tensor:
    # Not the seeds of `random`: torch makes both from the same numbers, and the noise would follow the source.
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)


def check(fit: Affine, scale: float, shift: float, tolerance: float = 1e-9) -> None:
    for found, expected in zip(fit, (scale, shift), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=tolerance)


def test_four_numbers_by_hand() -> None:
    fit = fit_affine(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 3.0, 2.0, 4.0]]))
    check(fit, 0.8, 0.5, 1e-6)
    weighted = fit_affine(*(torch.tensor([[1.0, 2.0, 3.0], [1.0, 3.0, 9.0]])[:, None]), torch.tensor([[1.0, 1.0, 0.0]]))
    check(weighted, 2.0, -1.0, 1e-6)


@pytest.mark.parametrize("fit", AFFINE)
def test_affine_finds_what_it_was_given(fit: Fit) -> None:
    source = random(2, 3, 8, 9)
    found = fit(source, Affine(*torch.tensor([[1.5, 0.2], [0.3, -0.1]]).double())(source))
    torch.testing.assert_close(found.scale, torch.tensor([1.5, 0.2]).double())
    torch.testing.assert_close(found.shift, torch.tensor([0.3, -0.1]).double())


@pytest.mark.parametrize("fit", AFFINE)
def test_a_small_spread_far_from_zero_is_resolved_in_single_precision(fit: Fit) -> None:
    # Without centring, the normal equations lose all digits here.
    source = 1000 + random(1, 40, 50, dtype=torch.float32)
    found = fit(source, 2 * source - 1990)
    assert (found(source) - (2 * source - 1990)).abs().max() < 2e-3
    assert abs(float(found.scale) - 2) < 1e-3


@pytest.mark.parametrize("fit", AFFINE)
def test_masked_and_unknown_numbers_do_not_count(fit: Fit) -> None:
    source = random(2, 6, 7)
    target = 3 * source + 1
    mask = torch.ones(2, 6, 7, dtype=torch.bool)
    mask[:, 0] = False
    target[:, 0], source[:, 1], target[:, 2, 3], target[0, 3, 3] = 50.0, torch.nan, torch.inf, torch.nan
    check(fit(source, target, mask), 3, 1)
    check(fit(source, target, mask.double()), 3, 1)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_outliers_do_not_move_the_robust_fit(share: float, seed: int) -> None:
    source = random(2, 30, 40, seed=seed)
    target = 0.7 * source + 0.2 + 0.002 * normal(2, 30, 40, seed=seed)
    rows = round(share * 30)
    target[:, :rows] = target[:, :rows] + 0.3 + 5 * random(2, rows, 40, seed=seed + 50)  # all to one side
    source[:, : rows // 2] *= 3
    check(fit_affine_robust(source, target), 0.7, 0.2, 2e-3)
    assert (fit_affine(source, target).shift - 0.2).abs().min() > 0.1


def test_the_robust_fit_sees_nothing_of_what_is_masked() -> None:
    source = random(2, 1000)
    target = 0.7 * source + 0.2 + 0.002 * normal(2, 1000)
    target[:, :24] += 1  # two fifths of what counts
    target[:, 60:] = 9 * random(2, 940, seed=1)
    mask = torch.arange(1000).expand(2, 1000) < 60
    check(fit_affine_robust(source, target, mask), 0.7, 0.2, 5e-3)


def test_the_robust_fit_is_as_good_as_least_squares_without_outliers() -> None:
    source = random(50, 30, 20)
    target = 0.7 * source + 0.2 + 0.01 * normal(50, 30, 20)
    robust, plain = ((fit(source, target).scale - 0.7).square().mean() for fit in (fit_affine_robust, fit_affine))
    assert robust < 1.2 * plain


def test_the_robust_fit_repeats() -> None:
    source = random(1, 100)
    target = source + normal(1, 100)
    assert torch.equal(fit_affine_robust(source, target).scale, fit_affine_robust(source, target).scale)
    seeded = [fit_affine_robust(source, target, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(seeded[0].shift, seeded[1].shift)


@pytest.mark.parametrize("by", ["mean", "median"])
def test_scale(by: str) -> None:
    source = random(2, 5, 5) + 0.1
    target = source * torch.tensor([2.0, 0.5]).double()[:, None, None]
    source[:, 0], target[:, 1], target[:, 2] = -1.0, torch.nan, 0.0
    fit = fit_scale(source, target, by=by)
    torch.testing.assert_close(fit.scale, torch.tensor([2.0, 0.5]).double())
    assert fit.shift.count_nonzero() == 0


def test_mean_and_median_of_ratios() -> None:
    source, target = torch.ones(1, 5), torch.tensor([[1.0, 2.0, 3.0, 10.0, 40.0]])
    assert fit_scale(source, target).scale.item() == 3
    assert fit_scale(source, target, torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])).scale.item() == 2
    assert fit_scale(source, target, torch.tensor([[3.0, 1.0, 0.0, 0.0, 0.0]]), by="mean").scale.item() == 1.25


@pytest.mark.parametrize("fit", [*AFFINE, fit_scale, lambda *x: fit_scale(*x, by="mean")])
def test_nothing_to_go_by_is_the_identity(fit: Fit) -> None:
    source, target = random(2, 4, 4), random(2, 4, 4, seed=1)
    check(fit(source, target, torch.zeros(2, 4, 4)), 1, 0)
    check(fit(torch.full_like(source, torch.nan), target), 1, 0)


@pytest.mark.parametrize("fit", AFFINE)
def test_a_constant_source_is_only_shifted(fit: Fit) -> None:
    check(fit(torch.full((2, 9, 9), 0.3), torch.full((2, 9, 9), 0.8)), 1, 0.5, 1e-6)
    check(fit(torch.full((1, 1), 0.3), torch.full((1, 1), 0.8)), 1, 0.5, 1e-6)


def test_inverse_of_what_is_not_positive_is_zero() -> None:
    values = torch.tensor([2.0, 0.0, -1.0, torch.inf, torch.nan], dtype=torch.float64, requires_grad=True)
    inverse = safe_inverse(values)
    assert inverse[:4].tolist() == [0.5, 0.0, 0.0, 0.0]
    assert inverse[4].isnan()
    inverse[:3].sum().backward()
    assert values.grad is not None
    assert values.grad[:3].tolist() == [-0.25, 0.0, 0.0]


def test_depth_aligned_in_disparity() -> None:
    truth = random(1, 2, 8, 8) + 1
    predicted = safe_inverse(0.5 * safe_inverse(truth) + 0.1)
    fit = fit_affine(safe_inverse(predicted), safe_inverse(truth))
    torch.testing.assert_close(aligned_in_disparity(predicted, fit), truth)
    behind = Affine(torch.tensor([1.0]), torch.tensor([-1.0]))
    assert aligned_in_disparity(torch.tensor([[0.5, 2.0]]), behind).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("fit", [*AFFINE, lambda *x: fit_scale(*x, by="mean")])
def test_gradcheck(fit: Fit) -> None:
    source = (random(2, 7) + 0.5).requires_grad_()
    target = (random(2, 7) * 0.5 + 0.3 * random(2, 7, seed=1) + 0.5).requires_grad_()
    weights = (random(2, 7, seed=2) + 0.1).requires_grad_()
    if fit is fit_affine_robust:  # which trusts numbers by their error, and does not differentiate that
        found = fit(source, target, weights)
        sum(part.sum() for part in found).backward()
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (source, target, weights))
        return
    assert torch.autograd.gradcheck(lambda *inputs: tuple(fit(*inputs)), (source, target, weights))


def test_precision_of_the_answer() -> None:
    source = random(1, 50, dtype=torch.float32) + 0.5
    assert fit_affine(source, 2 * source).scale.dtype == torch.float32
    assert fit_affine_robust(source.bfloat16(), (2 * source).bfloat16()).scale.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fit_affine_robust(source, 2 * source)
    assert torch.equal(inside.scale, fit_affine_robust(source, 2 * source).scale)
