"""Masked L1 and edge-weighted gradient matching: stored numbers, hand-made maps, gradients, empty masks, pieces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.kernels import gradient_matching as kernel
from fourd_core.kernels.gradient_matching import GradientForm, gradient_matching, masked_l1, masked_mean, matching

STORED = Path(__file__).parent / "data/lila/edge_loss.safetensors"


def test_absolute_form_equals_the_stored_loss_and_gradient() -> None:
    stored = load_file(STORED)
    prediction = stored["pred"].requires_grad_()
    loss = gradient_matching(prediction, stored["gt"], stored["conf"] > 0, sigma=0.1, form="absolute")
    loss.backward()
    torch.testing.assert_close(loss.detach(), stored["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(prediction.grad, stored["dpred"], rtol=1e-5, atol=1e-8)


def test_a_single_edge_by_hand() -> None:
    # one row 0 0 2 2 against 0 0 -1 -1: a single edge of weight 1 - exp(-1/0.5) among three pairs, none along y
    prediction = torch.tensor([[[[0.0, 0.0, 2.0, 2.0]]]])
    target = torch.tensor([[[[0.0, 0.0, -1.0, -1.0]]]])
    valid = torch.ones_like(target, dtype=torch.bool)
    weight = 1 - math.exp(-1 / 0.5)
    assert gradient_matching(prediction, target, valid, 0.5, "absolute").item() == pytest.approx(weight * 1 / 3)
    assert gradient_matching(prediction, target, valid, 0.5, "signed").item() == pytest.approx(weight * 3 / 3)
    assert masked_l1(prediction, target, valid).item() == pytest.approx(1.5)


def test_a_pair_counts_only_if_both_pixels_are_valid() -> None:
    prediction, target = torch.randn(2, 1, 1, 5, 6).unbind()
    valid = torch.ones(1, 1, 5, 6, dtype=torch.bool)
    valid[..., 2:, :] = False
    top = (slice(None), slice(None), slice(None, 2))
    for form in get_args(GradientForm):
        masked = gradient_matching(prediction, target, valid, form=form)
        torch.testing.assert_close(masked, gradient_matching(prediction[top], target[top], valid[top], form=form))
    torch.testing.assert_close(masked_l1(prediction, target, valid), (prediction[top] - target[top]).abs().mean())


@pytest.mark.parametrize("form", get_args(GradientForm))
def test_gradcheck(form: GradientForm) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 1, 2, 4, 5, generator=generator, dtype=torch.float64).unbind()
    valid = torch.rand(1, 2, 4, 5, generator=generator) > 0.2
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: gradient_matching(p, target, valid, 0.3, form), prediction)
    assert torch.autograd.gradcheck(lambda p: masked_l1(p, target, valid), prediction)


def test_an_empty_mask_gives_zero_and_no_gradient() -> None:
    prediction = torch.randn(1, 2, 4, 4, requires_grad=True)
    nothing = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    loss = gradient_matching(prediction, torch.randn(1, 2, 4, 4), nothing) + masked_l1(
        prediction, torch.randn(1, 2, 4, 4), nothing
    )
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.count_nonzero() == 0


def defined(prediction: Tensor, target: Tensor, valid: Tensor, sigma: float, form: GradientForm) -> Tensor:
    """L1 plus 0.7 times the edges, by the definitions."""
    known = torch.where(valid, target, 0)
    return masked_l1(prediction, known, valid) + 0.7 * gradient_matching(prediction, known, valid, sigma, form)


SIZES = {
    "maps": (2, 3, 7, 5),
    "row": (1, 2, 1, 9),
    "column": (2, 2, 9, 1),
    "pixels": (7, 3, 1, 1),
    "large": (1, 2, 31, 9),
}


@pytest.mark.parametrize("form", get_args(GradientForm))
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_pieces_add_up_to_the_definition_and_its_gradient(
    size: tuple[int, ...], form: GradientForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64; the large maps are cut between rows, others between planes."""
    monkeypatch.setattr(kernel, "PIECE", 90)
    generator = torch.Generator().manual_seed(len(size))
    prediction, target = torch.randn(2, *size, generator=generator, dtype=torch.float64).unbind()
    valid = torch.rand(size, generator=generator) > 0.2
    target[~valid] = torch.nan
    prediction[..., :2] = 0.5  # a step of exactly 0, where |step| has gradient 0
    prediction.requires_grad_()

    expected = defined(prediction, target, valid, 0.3, form)
    (slope,) = torch.autograd.grad(3 * expected, prediction)
    found = matching(prediction, target, valid, 0.3, form, 0.7)
    (given,) = torch.autograd.grad(3 * found.loss, prediction)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(given, slope, rtol=1e-12, atol=1e-15)
    l1 = masked_l1(prediction, torch.where(valid, target, 0), valid)
    torch.testing.assert_close(found.l1, l1.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.l1 + 0.7 * found.edge, found.loss.detach(), rtol=1e-12, atol=0)
    assert not found.l1.requires_grad and not found.edge.requires_grad
    with torch.no_grad():
        alone = matching(prediction, target, valid, 0.3, form, 0.7)
    assert torch.equal(alone.loss, found.loss) and not alone.loss.requires_grad


def test_matching_of_the_stored_maps() -> None:
    stored = load_file(STORED)
    prediction = stored["pred"].requires_grad_()
    valid = stored["conf"] > 0
    matched = matching(prediction, stored["gt"], valid, 0.1, "absolute", 1.0)
    torch.testing.assert_close(matched.edge, stored["loss"], rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(matched.loss, prediction)
    (l1,) = torch.autograd.grad(masked_l1(prediction, stored["gt"], valid), prediction)
    torch.testing.assert_close(slope - l1, stored["dpred"], rtol=1e-4, atol=1e-8)


def test_any_layout_of_memory_and_expanded_masks() -> None:
    generator = torch.Generator().manual_seed(3)
    prediction = torch.randn(2, 5, 6, 3, generator=generator, dtype=torch.float64).permute(0, 3, 2, 1).requires_grad_()
    target = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64).mT
    valid = (torch.rand(2, 1, 6, 5, generator=generator) > 0.3).expand(-1, 3, -1, -1)
    (slope,) = torch.autograd.grad(defined(prediction, target, valid, 0.1, "signed"), prediction)
    (given,) = torch.autograd.grad(matching(prediction, target, valid, 0.1, "signed", 0.7).loss, prediction)
    torch.testing.assert_close(given, slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_judged_in_float32(dtype: torch.dtype) -> None:
    prediction, target = torch.randn(2, 1, 2, 9, 8, generator=torch.Generator().manual_seed(1)).unbind()
    valid = torch.ones(1, 2, 9, 8, dtype=torch.bool)
    half, whole = prediction.to(dtype).requires_grad_(), prediction.to(dtype).float().requires_grad_()
    found, exact = matching(half, target, valid), matching(whole, target, valid)
    assert found.loss.dtype == torch.float32 and torch.equal(found.loss, exact.loss)
    found.loss.backward()
    exact.loss.backward()
    assert torch.equal(half.grad, whole.grad.to(dtype))


def test_small_gradients_in_float16_wait_for_the_loss_scale() -> None:
    # Only edges pull the left half, by less than float16 can hold.
    prediction, other = torch.randn(2, 1, 2, 6, 8, generator=torch.Generator().manual_seed(1)).half().unbind()
    target = prediction.float()
    target[..., 4:] += other[..., 4:]
    half, whole = prediction.clone().requires_grad_(), prediction.float().requires_grad_()
    valid = torch.ones_like(target, dtype=torch.bool)
    for leaf in (half, whole):
        (2**20 * matching(leaf, target, valid, edge_weight=1e-6, form="signed").loss).backward()
    assert whole.grad[..., 3].count_nonzero()
    assert torch.equal(half.grad, whole.grad.half())


def test_a_target_learns_nothing() -> None:
    target = torch.randn(1, 2, 4, 4, requires_grad=True)
    valid = torch.ones(1, 2, 4, 4, dtype=torch.bool)
    prediction = torch.randn(1, 2, 4, 4)
    assert not matching(prediction, target, valid).loss.requires_grad
    matching(prediction.requires_grad_(), target, valid).loss.backward()
    assert target.grad is None


@pytest.mark.parametrize("size", [(1, 2, 4, 4), (0, 2, 4, 4)])
def test_matching_where_nothing_is_valid(size: tuple[int, ...]) -> None:
    prediction = torch.randn(size, requires_grad=True)
    matched = matching(prediction, torch.full(size, torch.nan), torch.zeros(size, dtype=torch.bool))
    matched.loss.backward()
    assert all(value == 0 for value in matched)
    assert prediction.grad.count_nonzero() == 0


def test_matching_is_exported_and_compiled_as_its_definition(unchecked: None) -> None:
    prediction, target = torch.randn(2, 1, 2, 6, 5, dtype=torch.float64).unbind()
    valid = torch.rand(1, 2, 6, 5) > 0.3
    prediction.requires_grad_()
    expected = matching(prediction, target, valid)
    (slope,) = torch.autograd.grad(expected.loss, prediction)
    compiled = torch.compile(matching, backend="aot_eager", fullgraph=True)(prediction, target, valid)
    torch.testing.assert_close(tuple(compiled), tuple(expected), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(compiled.loss, prediction)[0], slope, rtol=1e-12, atol=1e-15)

    class Loss(torch.nn.Module):
        def forward(self, *maps: Tensor) -> Tensor:
            return matching(*maps).loss

    exported = torch.export.export(Loss(), (prediction, target, valid)).module()
    torch.testing.assert_close(exported(prediction, target, valid), expected.loss, rtol=1e-12, atol=0)


MAPS = torch.zeros(1, 2, 4, 4)
MASK = torch.ones(1, 2, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ((MAPS, MAPS, MASK[:, :1]), ValueError, r"one shape, got \(1, 2, 4, 4\), \(1, 2, 4, 4\) and \(1, 1, 4, 4\)"),
        ((MAPS, MAPS[:, :1], MASK), ValueError, r"one shape, got \(1, 2, 4, 4\), \(1, 1, 4, 4\) and"),
        ((MAPS[..., :1], MAPS, MASK), ValueError, r"one shape, got \(1, 2, 4, 1\), \(1, 2, 4, 4\) and"),
        ((MAPS[0], MAPS[0], MASK[0]), ValueError, r"maps must be 'b c h w' with a pixel or more, got \(2, 4, 4\)"),
        ((MAPS[:, :, :0], MAPS[:, :, :0], MASK[:, :, :0]), ValueError, r"a pixel or more, got \(1, 2, 0, 4\)"),
        ((MAPS, MAPS, MASK.float()), TypeError, "valid must be bool, got float32"),
        ((MAPS, MAPS, MASK.byte()), TypeError, "valid must be bool, got uint8"),
        ((MAPS, MAPS, MASK, 0.0), ValueError, "sigma must be above 0, got 0"),
        ((MAPS, MAPS, MASK, math.nan), ValueError, "sigma must be above 0, got nan"),
        ((MAPS, MAPS, MASK, 0.1, "squared"), ValueError, "form must be 'absolute' or 'signed', got 'squared'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named(given: tuple[Any, ...], error: type[Exception], sentence: str) -> None:
    for function in (masked_l1, gradient_matching, matching)[len(given) > 3 :]:
        with pytest.raises(error, match=sentence):
            function(*given)


@pytest.mark.usefixtures("unchecked")
def test_a_mean_wants_a_mask_of_its_own_shape() -> None:
    with pytest.raises(ValueError, match=r"values and valid must have one shape, got \(1, 2, 4, 4\) and \(2, 4, 4\)"):
        masked_mean(MAPS, MASK[0])
    with pytest.raises(TypeError, match="valid must be bool, got uint8"):
        masked_mean(MAPS, MASK.byte())
