"""The losses: their numbers against loops written out, their gradients, and what is not known has no say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from fourd_l4p import losses
from torch import Tensor

B, N = 3, 7
NAN = float("nan")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(*shape: int) -> Tensor:
    """About two of three; of the last clip none."""
    valid = numbers(*shape, seed=9) > -0.4
    valid[-1] = False
    return valid


def silog_loop(log_depth: Tensor, depth: Tensor, valid: Tensor, focus: float) -> float:
    clips = []
    for b in range(len(depth)):
        d = [
            float(log_depth[b, i]) - math.log(float(depth[b, i]))
            for i in range(depth.shape[1])
            if valid[b, i] and math.isfinite(float(depth[b, i])) and depth[b, i] > 0
        ]
        if d:
            clips.append(math.sqrt(sum(x * x for x in d) / len(d) - focus * (sum(d) / len(d)) ** 2))
    return sum(clips) / len(clips) if clips else 0.0


@pytest.mark.parametrize("focus", [0.0, 0.85, 1.0])
def test_silog(focus: float) -> None:
    log_depth, depth, valid = numbers(B, N) + 3, numbers(B, N, seed=1).exp(), some(B, N)
    depth[0, 2], depth[0, 3], depth[1, 4] = NAN, -1.0, math.inf
    found = losses.silog(log_depth, depth, valid, focus)
    assert float(found) == pytest.approx(silog_loop(log_depth, depth, valid, focus), rel=1e-12)


def test_silog_forgives_the_scale_as_far_as_it_is_told() -> None:
    depth = numbers(1, N).exp()
    everywhere = torch.ones(1, N, dtype=torch.bool)
    assert float(losses.silog((4 * depth).log(), depth, everywhere, 1.0)) < 2e-6
    assert float(losses.silog((4 * depth).log(), depth, everywhere, 0.75)) == pytest.approx(0.5 * math.log(4))
    # In float32, far off in scale: the two means' difference would be noise.
    far = losses.silog((1e4 * depth).log().float() + 1e-3 * numbers(1, N, seed=4).float(), depth.float(),
                       everywhere, 1.0)  # fmt: skip
    assert float(far) == pytest.approx(float((1e-3 * numbers(1, N, seed=4)).std(correction=0)), rel=2e-3)


def test_l1() -> None:
    predicted, truth, valid = numbers(B, N, 2), numbers(B, N, 2, seed=1), some(B, N)
    truth[~valid] = NAN
    errors = [
        sum(abs(float(predicted[b, i, c] - truth[b, i, c])) for c in range(2))
        for b in range(B)
        for i in range(N)
        if valid[b, i]
    ]
    assert float(losses.l1(predicted, truth, valid)) == pytest.approx(sum(errors) / len(errors), rel=1e-12)


def test_cross_entropy() -> None:
    logit, truth, valid = 3 * numbers(B, N), (numbers(B, N, seed=1) > 0).double(), some(B, N)
    truth[~valid] = NAN
    errors = [
        -math.log(1 / (1 + math.exp(-float(logit[b, i]) if truth[b, i] else float(logit[b, i]))))
        for b in range(B)
        for i in range(N)
        if valid[b, i]
    ]
    assert float(losses.cross_entropy(logit, truth, valid)) == pytest.approx(sum(errors) / len(errors), rel=1e-12)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
CASES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "silog": (lambda predicted, truth, valid: losses.silog(predicted, truth.exp(), valid, 0.85), (B, N)),
    "l1": (losses.l1, (B, N, 2)),
    "cross_entropy": (lambda predicted, truth, valid: losses.cross_entropy(predicted, truth.sigmoid(), valid), (B, N)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    loss, shape = CASES[name]
    truth, valid = numbers(*shape, seed=1), some(B, N)
    truth[~valid] = NAN
    predicted = numbers(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, truth, valid), (predicted,))
    (gradient,) = torch.autograd.grad(loss(predicted, truth, valid), predicted)
    assert not gradient[~valid].any()
    assert gradient[valid].all()


@pytest.mark.parametrize("name", CASES)
def test_where_nothing_is_known(name: str) -> None:
    loss, shape = CASES[name]
    predicted = numbers(*shape).requires_grad_()
    found = loss(predicted, torch.full(shape, NAN, dtype=torch.float64), torch.zeros(B, N, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(found, predicted)
    assert float(found.detach()) == 0
    assert not gradient.any()


def test_a_perfect_answer_has_a_finite_gradient() -> None:
    depth = numbers(1, N).exp()
    predicted = depth.log().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.silog(predicted, depth, depth > 0, 0.85), predicted)
    assert gradient.isfinite().all()


def test_the_scale_of_a_clip() -> None:
    depth = torch.tensor([[1.0, 4.0, NAN], [NAN, NAN, NAN], [NAN, NAN, NAN], [NAN, -1.0, 0.0]])
    tracks = torch.tensor([[9.0, 9.0], [2.0, 8.0], [NAN, NAN], [NAN, NAN]])
    centres = torch.zeros(4, 3, 3)
    centres[:3, 1, 0], centres[:3, 2, 1] = 3.0, 6.0
    assert losses.clip_scale(depth, tracks, centres).tolist() == pytest.approx([2.0, 4.0, 3.0, 1.0])
    assert losses.clip_scale(None, None, torch.full((2, 3, 3), NAN)).tolist() == [1.0, 1.0]
    assert losses.clip_scale(None, tracks, None).tolist() == pytest.approx([9.0, 4.0, 1.0, 1.0])


def test_what_is_logged() -> None:
    depth = torch.tensor([[1.0, 2.0, 4.0, NAN], [NAN, NAN, NAN, NAN]])
    predicted = 10 * torch.tensor([[1.0, 2.0, 5.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert float(losses.relative_error(predicted.log(), depth)) == pytest.approx(0.25 / 3)
    flow, truth = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 3.0], [NAN, 0.0]])
    known = torch.tensor([True, True, False])
    assert float(losses.end_point_error(flow, truth, known)) == pytest.approx(3.5)
    logit, given = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0, NAN])
    valid = torch.tensor([True, True, True, True, False])
    assert float(losses.intersection_over_union(logit, given, valid)) == pytest.approx(1 / 3)
    assert float(losses.accuracy(logit, given, valid)) == pytest.approx(0.5)
    nothing = torch.zeros(5, dtype=torch.bool)
    assert float(losses.intersection_over_union(logit, given, nothing)) == 0
    assert float(losses.accuracy(logit, given, nothing)) == 0
