"""The losses of a linear map's output: values and gradients as with the whole prediction, precision, one backward."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fourd_core.kernels import linear_matching as kernel
from fourd_core.kernels.gradient_matching import GradientForm, gradient_matching, masked_l1
from fourd_core.kernels.linear_matching import apply_readout, linear_matching

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def case(b: int, d: int, k: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> Case:
    """Features, readout, target (NaN where it is not valid), valid."""
    generator = torch.Generator().manual_seed(b + h)
    features = torch.randn(b, d, h, w, generator=generator, dtype=dtype)
    readout = torch.randn(b, d + 1, k, generator=generator, dtype=dtype)
    target = torch.randn(b, k, h, w, generator=generator, dtype=dtype)
    valid = torch.rand(b, k, h, w, generator=generator) > 0.2
    target[~valid] = torch.nan
    return features.requires_grad_(), readout.requires_grad_(), target, valid


def defined(features: Tensor, readout: Tensor, target: Tensor, valid: Tensor, form: GradientForm) -> Tensor:
    prediction = torch.einsum("bdk,bdhw->bkhw", readout[:, :-1], features) + readout[:, -1][..., None, None]
    known = torch.where(valid, target, 0)
    return masked_l1(prediction, known, valid) + 0.7 * gradient_matching(prediction, known, valid, 0.3, form)


SIZES = {"maps": (2, 3, 4, 13, 5), "row": (1, 2, 2, 1, 9), "column": (3, 2, 1, 9, 1), "pixels": (7, 4, 3, 1, 1)}


@pytest.mark.parametrize("form", get_args(GradientForm))
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_bands_add_up_to_the_whole_prediction(
    size: tuple[int, ...], form: GradientForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands of four rows: the 13 rows of the maps make three of them and one row."""
    monkeypatch.setattr(kernel, "BAND", 1)
    features, readout, target, valid = case(*size)
    expected = defined(features, readout, target, valid, form)
    slopes = torch.autograd.grad(3 * expected, (features, readout))
    found = linear_matching(features, readout, target, valid, 0.3, form, 0.7)
    given = torch.autograd.grad(3 * found.loss, (features, readout))
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(given, slopes, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.l1 + 0.7 * found.edge, found.loss.detach(), rtol=1e-12, atol=0)
    assert not found.l1.requires_grad and not found.edge.requires_grad


@pytest.mark.parametrize("learning", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_wanted(learning: tuple[bool, bool]) -> None:
    features, readout, target, valid = case(*SIZES["maps"])
    slopes = torch.autograd.grad(defined(features, readout, target, valid, "absolute"), (features, readout))
    leaves = [leaf.detach().requires_grad_(wanted) for leaf, wanted in zip((features, readout), learning, strict=True)]
    loss = linear_matching(*leaves, target, valid, 0.3, "absolute", 0.7).loss
    assert loss.requires_grad == any(learning)
    if any(learning):
        loss.backward()
    for leaf, slope, wanted in zip(leaves, slopes, learning, strict=True):
        if wanted:
            torch.testing.assert_close(leaf.grad, slope, rtol=1e-12, atol=1e-14)
        else:
            assert leaf.grad is None


def test_views_of_a_batch_of_pairs() -> None:
    """As LILA has them: every other map of larger tensors, and a mask that all channels share."""
    features, readout, target, valid = case(4, 3, 2, 6, 5)
    pairs, cues = features.unflatten(0, (2, 2)), target.unflatten(0, (2, 2))[:, 1]
    shared = valid.unflatten(0, (2, 2))[:, 1, :1].expand(-1, 2, -1, -1)
    cues = torch.where(shared, cues.nan_to_num(), torch.nan)
    whole = defined(pairs[:, 0], readout[:2], cues, shared, "absolute")
    slopes = torch.autograd.grad(whole, (features, readout))
    found = linear_matching(pairs[:, 0], readout[:2], cues, shared, 0.3, "absolute", 0.7)
    torch.testing.assert_close(found.loss, whole, rtol=1e-12, atol=0)
    given = torch.autograd.grad(found.loss, (features, readout))
    torch.testing.assert_close(given, slopes, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_features_are_read_in_float32(autocast: bool) -> None:
    features, readout, target, valid = case(2, 16, 3, 12, 11, torch.float32)
    half = features.detach().bfloat16().requires_grad_()
    slopes = torch.autograd.grad(defined(half.float(), readout, target, valid, "absolute"), (half, readout))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = linear_matching(half, readout, target, valid, 0.3, "absolute", 0.7)
    expected = linear_matching(half.float(), readout, target, valid, 0.3, "absolute", 0.7)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=0)
    given = torch.autograd.grad(found.loss, (half, readout))
    assert (given[0].dtype, given[1].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(given, slopes, rtol=1e-2, atol=1e-6)


def test_small_gradients_in_float16_wait_for_the_loss_scale() -> None:
    features, readout, target, valid = case(2, 3, 2, 5, 4, torch.float32)
    half, small = features.detach().half().requires_grad_(), readout.detach() * 1e-6
    (2**20 * linear_matching(half, small, target, valid).loss).backward()
    whole = half.detach().float().requires_grad_()
    (2**20 * linear_matching(whole, small, target, valid).loss).backward()
    assert torch.equal(half.grad, whole.grad.half())


@pytest.mark.parametrize("size", [(0, 3, 2, 5, 4), (2, 3, 0, 5, 4)], ids=["no samples", "no cues"])
def test_an_empty_batch_gives_zero(size: tuple[int, ...]) -> None:
    features, readout, target, valid = case(*size)
    found = linear_matching(features, readout, target.requires_grad_(), valid)
    found.loss.backward()
    assert found.loss == 0 and features.grad.count_nonzero() == 0
    assert target.grad is None


def test_a_target_learns_nothing() -> None:
    features, readout, target, valid = case(*SIZES["maps"])
    assert not linear_matching(features.detach(), readout.detach(), target.requires_grad_(), valid).loss.requires_grad


def test_nothing_valid_gives_zero() -> None:
    features, readout, target, valid = case(*SIZES["maps"])
    found = linear_matching(features, readout, torch.full_like(target, torch.nan), valid & False)
    found.loss.backward()
    assert all(value == 0 for value in found)
    assert features.grad.count_nonzero() == readout.grad.count_nonzero() == 0


def test_a_second_backward_pass_is_refused() -> None:
    found = linear_matching(*case(*SIZES["maps"]))
    found.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass through linear_matching"):
        found.loss.backward()


def test_compiled_and_exported_it_is_the_whole_prediction(unchecked: None) -> None:
    features, readout, target, valid = case(1, 3, 2, 5, 4)
    expected = linear_matching(features, readout, target, valid, 0.3, "signed", 0.7)
    slopes = torch.autograd.grad(expected.loss, (features, readout))
    compiled = torch.compile(linear_matching, backend="aot_eager", fullgraph=True)
    found = compiled(features, readout, target, valid, 0.3, "signed", 0.7)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-12, atol=0)
    given = torch.autograd.grad(found.loss, (features, readout))
    torch.testing.assert_close(given, slopes, rtol=1e-12, atol=1e-14)

    class Loss(torch.nn.Module):
        def forward(self, *maps: Tensor) -> Tensor:
            return linear_matching(*maps, 0.3, "signed", 0.7).loss

    exported = torch.export.export(Loss(), (features, readout, target, valid)).module()
    torch.testing.assert_close(exported(features, readout, target, valid), expected.loss, rtol=1e-12, atol=0)


def test_a_readout_is_applied_with_its_bias() -> None:
    features, readout = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([[[3.0], [5.0], [7.0]]])
    assert apply_readout(features, readout).item() == 20


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"features": torch.ones(2, 3, 13)}, ValueError, r"features \(2, 3, 13\) 'b d h w' need a readout 'b d\+1 k'"),
        ({"features": torch.ones(2, 2, 13, 5)}, ValueError, r"features \(2, 2, 13, 5\) 'b d h w' need a readout"),
        ({"readout": torch.ones(1, 4, 4)}, ValueError, r"'b d\+1 k' .*got \(1, 4, 4\)"),
        ({"readout": torch.ones(4, 4)}, ValueError, r"'b d\+1 k' .*got \(4, 4\)"),
        ({"readout": torch.ones(2, 3, 4)}, ValueError, r"'b d\+1 k' .*got \(2, 3, 4\)"),
        ({"target": torch.ones(2, 1, 13, 5)}, ValueError, r"got \(2, 4, 4\), \(2, 1, 13, 5\) and \(2, 4, 13, 5\)"),
        ({"target": torch.ones(4, 13, 5)}, ValueError, r"got \(2, 4, 4\), \(4, 13, 5\) and"),
        ({"valid": torch.ones(2, 1, 13, 5) > 0}, ValueError, r"and \(2, 1, 13, 5\)"),
        ({"valid": torch.ones(2, 4, 13, 5)}, TypeError, "valid must be bool, got float32"),
        ({"sigma": -1.0}, ValueError, "sigma must be above 0, got -1"),
        ({"form": "squared"}, ValueError, "form must be 'absolute' or 'signed', got 'squared'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named(change: dict[str, Any], error: type[Exception], sentence: str) -> None:
    given = dict(zip(("features", "readout", "target", "valid"), case(*SIZES["maps"]), strict=True)) | change
    with pytest.raises(error, match=sentence):
        linear_matching(**given)
    if change.keys() <= {"features", "readout"}:
        with pytest.raises(error, match=r"'b d h w' need a readout 'b d\+1 k', got"):
            apply_readout(given["features"], given["readout"])
