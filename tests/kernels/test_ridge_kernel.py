"""The ridge regression by Triton against its definition; compiled and exported, in both forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from torch import Tensor

from fourd_core.kernels import choice
from fourd_core.kernels.ridge import Solved, solve_ridge, weighted_ridge

pytestmark = pytest.mark.usefixtures("triton")

Problem = tuple[Tensor, Tensor, Tensor]


def problem(
    device: torch.device,
    b: int,
    n: int,
    d: int,
    k: int,
    dtype: torch.dtype = torch.float64,
    layout: str = "rows",
    seed: int = 0,
) -> Problem:
    """Features as rows, as maps or as every second row and column of something larger; a last sample without weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, 2 * n, 2 * d, generator=generator, dtype=torch.float64).to(device, dtype)[:, ::2, 1::2]
    y = torch.randn(b, k, n, generator=generator, dtype=torch.float64).to(device, dtype).mT
    c = torch.rand(b, n, generator=generator, dtype=torch.float64).to(device, dtype)
    if b > 1:
        c[-1] = 0
    return {"rows": x.contiguous(), "maps": x.mT.contiguous().mT, "sliced": x}[layout], y, c


def answers(inputs: Problem, form: choice.Form, ridge: float, bias: bool) -> list[Tensor]:
    """The readout and all gradients."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    with choice.using(form):
        readout, solved = solve_ridge(*leaves, ridge, bias)
        pull = torch.linspace(-1, 2, readout.numel(), device=readout.device).to(readout).view_as(readout)
        gradients = torch.autograd.grad(readout, leaves, pull)
    assert bool(solved.all())
    return [readout.detach(), *gradients]


def assert_alike(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for mine, right in zip(found, wanted, strict=True):
        assert mine.stride() == right.stride()
        scale = float(right.abs().max())
        torch.testing.assert_close(mine, right, rtol=0, atol=tolerance * max(scale, 1e-30), check_stride=True)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    b=some.sampled_from([1, 2, 7]),
    n=some.sampled_from([1, 5, 33]),
    d=some.sampled_from([1, 3, 16, 21]),
    k=some.sampled_from([1, 2, 19]),
    layout=some.sampled_from(["rows", "maps", "sliced"]),
    bias=some.booleans(),
)
def test_all_shapes(device: torch.device, b: int, n: int, d: int, k: int, layout: str, bias: bool) -> None:
    inputs = problem(device, b, n, d, k, layout=layout)
    assert_alike(answers(inputs, "triton", 0.1, bias), answers(inputs, "plain", 0.1, bias), 1e-12)


@pytest.mark.parametrize("form", ["plain", "triton"])
@pytest.mark.parametrize("size", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0)])
def test_empty_inputs(device: torch.device, size: tuple[int, ...], form: choice.Form) -> None:
    readout, *gradients = answers(problem(device, *size), form, 0.1, True)
    assert readout.shape == (size[0], size[2] + 1, size[3])
    assert all(bool(tensor.isfinite().all()) for tensor in (readout, *gradients))


@pytest.mark.parametrize("bias", [False, True])
def test_several_tiles(device: torch.device, bias: bool) -> None:
    inputs = problem(device, 1, 20, 70, 35, layout="maps")
    assert_alike(answers(inputs, "triton", 0.1, bias), answers(inputs, "plain", 0.1, bias), 1e-12)


@pytest.mark.parametrize("ridge", [0.1, 1e-3])
def test_single_precision(device: torch.device, ridge: float) -> None:
    """At ridge 0.1 a GPU multiplies in tf32, below in three of them; the interpreter always in float32."""
    inputs = problem(device, 2, 150, 70, 40, torch.float32, "maps")
    tolerance = 1e-2 if device.type == "cuda" and ridge == 0.1 else 1e-5
    right = answers(tuple(t.double() for t in inputs), "plain", ridge, True)
    assert_alike(answers(inputs, "triton", ridge, True), [t.float() for t in right], tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device: torch.device, dtype: torch.dtype) -> None:
    """The readout is float32's of the rounded numbers; gradients are rounded once, which the interpreter does
    by cutting, so that their last digit may be one off."""
    inputs = problem(device, 2, 40, 9, 3, dtype, "maps")
    found = answers(inputs, "triton", 0.1, True)
    right = answers(tuple(t.double() for t in inputs), "plain", 0.1, True)
    assert found[0].dtype == torch.float32
    assert {t.dtype for t in found[1:]} == {dtype}
    exact = 1e-2 if device.type == "cuda" else 1e-5
    assert_alike([found[0].double()], right[:1], exact)
    assert_alike([t.double() for t in found[1:]], right[1:], exact + torch.finfo(dtype).eps)


def test_two_runs_over_several_splits_are_equal_to_the_bit(device: torch.device) -> None:
    inputs = problem(device, 1, 1030, 5, 3, torch.float32)
    first, second = (answers(inputs, "triton", 0.1, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_alike(first, answers(inputs, "plain", 0.1, True), 1e-2 if device.type == "cuda" else 1e-5)


def test_small_ridges_are_not_solved_in_tf32() -> None:
    """Which the interpreter does not imitate."""
    from fourd_core.kernels.triton.ridge import tiles

    assert [tiles(torch.float32, ridge).precision for ridge in (0.1, 1e-2, 9e-3)] == ["tf32", "tf32", "tf32x3"]
    assert tiles(torch.float64, 0.1).precision == "ieee"


def test_the_gram_matrix_is_its_own_mirror(device: torch.device) -> None:
    from fourd_core.kernels.triton.ridge import normal_equations

    gram, _ = normal_equations(*problem(device, 2, 20, 70, 1, torch.float32), bias=True, ridge=1e-3)
    assert torch.equal(gram, gram.mT)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter, as it should
@pytest.mark.parametrize("broken", ["features", "targets", "weights"])
def test_a_sample_without_a_solution_touches_no_other(device: torch.device, broken: str) -> None:
    good = problem(device, 3, 20, 4, 2)
    bad = [t.clone() for t in good]
    bad[("features", "targets", "weights").index(broken)][1, 7] = torch.inf
    leaves = [t.requires_grad_() for t in bad]
    readout, solved = solve_ridge(*leaves, 0.1, True)
    found = [readout.detach(), *torch.autograd.grad(readout.square().sum() + readout.sum(), leaves)]
    assert solved.tolist() == [True, False, True]
    alone = [t[::2].clone().requires_grad_() for t in good]
    with choice.using("plain"):
        expected = weighted_ridge(*alone, 0.1, True)
    wanted = [expected.detach(), *torch.autograd.grad(expected.square().sum() + expected.sum(), alone)]
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine[::2], right, rtol=0, atol=1e-12)
        assert mine[1].count_nonzero() == 0


@pytest.fixture(params=["plain", "triton"])
def each_form(request: pytest.FixtureRequest) -> Iterator[None]:
    with choice.using(request.param):
        yield


def _by(form: Callable[..., Solved], inputs: Problem) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    readout, solved = form(*leaves)
    return [readout.detach(), solved, *torch.autograd.grad(readout.square().sum(), leaves)]


class Regression(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(solve_ridge(x, y, c, 0.1, True))


@pytest.mark.usefixtures("unchecked", "each_form")
def test_compiled_and_exported(device: torch.device) -> None:
    inputs = problem(device, 2, 9, 3, 2, torch.float32, "maps")
    wanted = _by(Regression(), inputs)
    compiled = torch.compile(Regression(), backend="aot_eager", fullgraph=True, dynamic=True)
    exported = torch.export.export(Regression(), inputs).module()
    for other in (compiled, exported):
        for mine, right in zip(_by(other, inputs), wanted, strict=True):
            torch.testing.assert_close(mine, right)


@pytest.mark.usefixtures("unchecked", "each_form")
def test_operators_keep_their_promises(device: torch.device) -> None:
    x, y, c = problem(device, 2, 5, 3, 2, torch.float32, "maps")
    leaves = [t.detach().requires_grad_() for t in (x, y, c)]
    promises = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.fourd.ridge.default, (*leaves, 0.1, True), test_utils=promises)
    z, m, solved = x.new_ones(2, 4, 2), x.new_ones(2, 4, 4), torch.tensor([True, False], device=device)
    of_features = torch.ops.fourd.ridge_features_gradient.default
    torch.library.opcheck(of_features, (x, y, c, z, m, solved, 0.1), test_utils=promises)
