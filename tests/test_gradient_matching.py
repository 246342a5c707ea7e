"""Masked L1 and edge-weighted gradient matching: stored numbers, hand-made maps, gradients, empty masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from fourd_core.kernels.gradient_matching import GradientForm, gradient_matching, masked_l1

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
