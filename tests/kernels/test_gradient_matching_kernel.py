"""The matching losses by their Triton kernels, against the definitions: values, gradients, repeats, compilers."""

from __future__ import annotations

from typing import get_args

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fourd_core.kernels import choice, linear_matching
from fourd_core.kernels.gradient_matching import GradientForm, Matching, matching

pytestmark = pytest.mark.usefixtures("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMS = get_args(GradientForm)
LAYOUTS = ("contiguous", "transposed", "every second", "expanded mask")
Maps = tuple[Tensor, Tensor, Tensor]


def maps(
    size: tuple[int, ...], layout: str = "contiguous", share: float = 0.8, dtype: torch.dtype = torch.float64
) -> Maps:
    """Prediction, target (NaN where it is not valid) and valid; some steps of the prediction are exactly 0."""
    generator = torch.Generator().manual_seed(sum(size))
    stored = list(size)
    if layout == "transposed":
        stored = [size[0], size[3], size[2], size[1]]
    elif layout == "every second":
        stored[2:] = [2 * n for n in stored[2:]]
    values = torch.randn(2, *stored, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    valid = (torch.rand(stored, generator=generator) < share).to(DEVICE)
    if layout == "transposed":
        values, valid = values.transpose(2, 4), valid.transpose(1, 3)
    elif layout == "every second":
        values, valid = values[..., ::2, 1::2], valid[..., ::2, 1::2]
    elif layout == "expanded mask":
        valid = valid[:1, :1].expand(size)
    prediction, target = values.unbind()
    prediction[..., :2] = 0.5
    target[~valid] = torch.nan
    return prediction.requires_grad_(), target, valid


def slopes(matched: Matching, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(3 * matched.loss, leaves)


def assert_same(found: Matching, expected: Matching, rtol: float = 1e-12) -> None:
    torch.testing.assert_close([v.detach() for v in found], [v.detach() for v in expected], rtol=rtol, atol=0)
    assert found.loss.requires_grad and not found.l1.requires_grad and not found.edge.requires_grad


# The interpreter takes some 10 ms for every row of every map.
sizes = st.tuples(st.just(2), st.integers(1, 2), st.integers(1, 4), st.sampled_from([1, 2, 5, 9])) | st.just(
    (7, 1, 1, 3)
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(sizes, st.sampled_from(LAYOUTS), st.sampled_from(FORMS), st.sampled_from([0.0, 0.7, 1.0]))
def test_losses_and_gradient_equal_the_definition(
    size: tuple[int, ...], layout: str, form: GradientForm, share: float
) -> None:
    prediction, target, valid = maps(size, layout, share)
    found = matching(prediction, target, valid, 0.3, form, 0.7)
    (given,) = slopes(found, prediction)
    with choice.using("plain"):
        expected = matching(prediction, target, valid, 0.3, form, 0.7)
    assert_same(found, expected)
    torch.testing.assert_close(given, slopes(expected, prediction)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", FORMS)
def test_large_maps_are_cut_between_rows_and_columns(form: GradientForm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bands of rows, three blocks of columns."""
    from fourd_core.kernels.triton import gradient_matching as kernels

    monkeypatch.setattr(kernels, "ROWS", 2)
    prediction, target, valid = maps((1, 1, 3, 140))
    found = matching(prediction, target, valid, 0.3, form, 0.7)
    (given,) = slopes(found, prediction)
    with choice.using("plain"):
        expected = matching(prediction, target, valid, 0.3, form, 0.7)
    assert_same(found, expected)
    torch.testing.assert_close(given, slopes(expected, prediction)[0], rtol=1e-12, atol=1e-15)
    with torch.no_grad():
        alone = matching(prediction, target, valid, 0.3, form, 0.7)
    torch.testing.assert_close(alone.loss, found.loss.detach(), rtol=1e-14, atol=0)


def test_two_runs_are_equal_to_the_bit() -> None:
    prediction, target, valid = maps((2, 2, 5, 9), dtype=torch.float32)
    first, second = (matching(prediction, target, valid) for _ in range(2))
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert torch.equal(*(slopes(matched, prediction)[0] for matched in (first, second)))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 1.6e-2)])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, error: float) -> None:
    """The losses to float32's precision; the gradient, which is in the prediction's, to two units in its last digit."""
    prediction, target, valid = maps((1, 2, 5, 9), dtype=torch.float32)
    half = prediction.detach().to(dtype).requires_grad_()
    found = matching(half, target, valid)
    (given,) = slopes(found, half)
    with choice.using("plain"):
        expected = matching(half.float(), target, valid)
    assert found.loss.dtype == torch.float32 and given.dtype == dtype
    assert_same(found, expected, rtol=1e-6)
    torch.testing.assert_close(given, slopes(expected, half)[0], rtol=error, atol=1e-7)


def test_small_gradients_in_float16_wait_for_the_loss_scale() -> None:
    # Only edges pull the left half, by less than float16 can hold.
    prediction, target, valid = maps((1, 1, 3, 8), share=1.0, dtype=torch.float32)
    half = prediction.detach().half()
    target = torch.where(torch.arange(8, device=DEVICE) < 4, half.float(), target)
    leaves = half.clone().requires_grad_(), half.float().requires_grad_()
    found = [torch.autograd.grad(2**20 * matching(p, target, valid, 0.1, "signed", 1e-6).loss, p)[0] for p in leaves]
    assert found[1][..., 3].count_nonzero()
    torch.testing.assert_close(found[0].float(), found[1], rtol=1e-3, atol=0)

    whole, readout = torch.randn(1, 2, 3, 8, device=DEVICE), torch.randn(1, 3, 1, device=DEVICE) * 1e-6
    found = []
    for features in (whole.half().requires_grad_(), whole.half().float().requires_grad_()):
        loss = 2**20 * linear_matching.linear_matching(features, readout, target, valid).loss
        found.append(torch.autograd.grad(loss, features)[0].float())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_a_mask_of_another_type_is_refused() -> None:
    prediction, target, valid = maps((1, 1, 3, 4))
    with pytest.raises(TypeError, match="valid must be bool, got float32"):
        matching(prediction, target, valid.float())


def test_gradcheck() -> None:
    prediction, target, valid = maps((1, 1, 3, 4))
    moved = prediction.detach() + torch.linspace(-0.1, 0.1, 12, dtype=torch.float64, device=DEVICE).view(1, 1, 3, 4)
    for form in FORMS:
        loss = lambda p, form=form: matching(p, target, valid, 0.3, form).loss  # noqa: E731
        assert torch.autograd.gradcheck(loss, moved.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_linear_map_chunk_by_chunk(form: GradientForm, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples, two of which make a chunk; features in half precision are computed with in float32."""
    from fourd_core.kernels.triton import gradient_matching as kernels

    monkeypatch.setattr(kernels, "SCALE_BLOCK", 64)
    monkeypatch.setattr(linear_matching, "CHUNK_BYTES", 2 * 2 * 4 * 5 * (8 if dtype == torch.float64 else 4))
    accurate = torch.promote_types(dtype, torch.float32)
    _, target, valid = maps((3, 2, 4, 5), dtype=accurate)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, 4, 5, generator=generator, dtype=torch.float64).to(DEVICE, dtype)[:, ::2]
    readout = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64).to(DEVICE, accurate)
    leaves = features.requires_grad_(), readout.requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = linear_matching.linear_matching(*leaves, target, valid, 0.3, form, 0.7)
    given = slopes(found, *leaves)
    with choice.using("plain"):
        prediction = linear_matching.apply_readout(*leaves)
        expected = matching(prediction, target, valid, 0.3, form, 0.7)
    exact = dtype == torch.float64
    assert_same(found, expected, rtol=1e-12 if exact else 1e-6)
    error = {"rtol": 1e-12, "atol": 1e-14} if exact else {"rtol": 1.6e-2, "atol": 1e-6}
    torch.testing.assert_close(given, slopes(expected, *leaves), **error)
    with pytest.raises(RuntimeError, match="second backward pass"):
        again = linear_matching.linear_matching(*leaves, target, valid)
        again.loss.backward(retain_graph=True)
        again.loss.backward()


@pytest.mark.usefixtures("unchecked")
def test_compiled_and_exported() -> None:
    prediction, target, valid = maps((1, 2, 3, 5), dtype=torch.float32)
    expected = matching(prediction, target, valid)
    compiled = torch.compile(matching, backend="aot_eager", fullgraph=True)(prediction, target, valid)
    assert_same(Matching(*compiled), expected)
    torch.testing.assert_close(slopes(compiled, prediction), slopes(expected, prediction))

    class Loss(torch.nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return matching(*given).loss

    exported = torch.export.export(Loss(), (prediction, target, valid))
    assert any("fourd.matching" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(prediction, target, valid), expected.loss)


@pytest.mark.parametrize("differentiate", [True, False])
def test_the_operator_keeps_its_promises(differentiate: bool) -> None:
    prediction, target, valid = maps((1, 1, 2, 3), dtype=torch.float32)
    matching(prediction, target, valid)  # the operator is registered at the first call
    prediction = prediction.detach().requires_grad_(differentiate)
    arguments = prediction, target.nan_to_num(), valid, 0.1, "absolute", 1.0, differentiate
    torch.library.opcheck(torch.ops.fourd.matching.default, arguments)


def test_on_a_cpu_the_kernels_wait_until_they_are_asked_for() -> None:
    prediction, target, valid = (tensor.detach().cpu() for tensor in maps((1, 1, 2, 3)))
    prediction.requires_grad_()
    with choice.using("best"):
        assert "InPieces" in type(matching(prediction, target, valid).loss.grad_fn).__name__
