"""Weighted ridge regression: stored numbers, the definition, gradients, failures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fourd_core.errors import RunError
from fourd_core.kernels import choice
from fourd_core.kernels.ridge import solve_ridge, weighted_ridge

STORED = Path(__file__).parent / "data/lila/ridge.safetensors"


def problem(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 7, 3, generator=generator, dtype=dtype)
    y = torch.randn(2, 7, 2, generator=generator, dtype=dtype)
    return x, y, torch.rand(2, 7, generator=generator, dtype=dtype)


def test_solution_and_gradients_equal_the_stored_ones() -> None:
    stored = load_file(STORED)
    x, y = stored["X"].requires_grad_(), stored["Y"].requires_grad_()
    solution = weighted_ridge(x, y, stored["C"][..., 0], ridge=0.1)
    (solution * stored["G"]).sum().backward()
    for mine, theirs in ((solution, stored["W"]), (x.grad, stored["dX"]), (y.grad, stored["dY"])):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


def test_solution_is_where_the_definition_is_flat() -> None:
    x, y, c = problem()
    solution = weighted_ridge(x, y, c, ridge=0.3).requires_grad_()
    residual = (x @ solution - y).square().sum(-1)
    cost = (c * residual).mean(-1).sum() + 0.3 * solution.square().sum()
    (gradient,) = torch.autograd.grad(cost, solution)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias: bool) -> None:
    inputs = [t.requires_grad_() for t in problem()]
    assert torch.autograd.gradcheck(lambda x, y, c: weighted_ridge(x, y, c, 0.1, bias), inputs)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_equal_those_through_a_general_solver(bias: bool) -> None:
    def solved_in_general(x: torch.Tensor, y: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        if bias:
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        weighted = (x * c[..., None]).mT / x.shape[1]
        gram = weighted @ x + 0.1 * torch.eye(x.shape[-1], dtype=x.dtype)
        return torch.linalg.solve(gram, weighted @ y)

    inputs = [t.requires_grad_() for t in problem()]
    pull = torch.randn(2, 3 + bias, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, theirs = weighted_ridge(*inputs, 0.1, bias), solved_in_general(*inputs)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(mine, inputs, pull), torch.autograd.grad(theirs, inputs, pull), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_maps_as_rows_give_the_same_and_gradients_laid_out_as_they_are(bias: bool) -> None:
    x, y, c = problem(dtype=torch.float32)
    maps, rows = x.mT.contiguous().requires_grad_(), x.clone().requires_grad_()
    pull = torch.randn(2, 3 + bias, 2, generator=torch.Generator().manual_seed(1))
    of_maps, of_rows = weighted_ridge(maps.mT, y, c, 0.1, bias), weighted_ridge(rows, y, c, 0.1, bias)
    torch.testing.assert_close(of_maps, of_rows)
    by_maps, by_rows = (torch.autograd.grad(w, t, pull)[0] for w, t in ((of_maps, maps), (of_rows, rows)))
    torch.testing.assert_close(by_maps.mT, by_rows)
    assert by_maps.is_contiguous() and by_rows.is_contiguous()


def test_weightless_rows_change_nothing_but_the_count() -> None:
    x, y, c = problem()
    junk = torch.full((2, 7, 1), 1e3, dtype=x.dtype)
    doubled = weighted_ridge(
        torch.cat([x, junk.expand_as(x)], 1), torch.cat([y, junk.expand_as(y)], 1), torch.cat([c, 0 * c], 1), ridge=0.1
    )
    torch.testing.assert_close(doubled, weighted_ridge(x, y, c, ridge=0.2))


def test_no_trusted_row_gives_the_zero_map() -> None:
    x, y, c = problem()
    assert weighted_ridge(x, y, 0 * c, ridge=0.1).count_nonzero() == 0


def test_autocast_changes_no_digit() -> None:
    x, y, c = problem(dtype=torch.float32)
    inputs = [t.requires_grad_() for t in (x, y, c)]
    outside = weighted_ridge(x, y, c, ridge=0.1)
    gradients = torch.autograd.grad(outside.square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = weighted_ridge(x, y, c, ridge=0.1)
        again = torch.autograd.grad(inside.square().sum(), inputs)
    assert torch.equal(inside, outside)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))


def test_half_precision_features_are_solved_in_single_precision() -> None:
    x, y, c = problem(dtype=torch.float32)
    assert weighted_ridge(x.bfloat16(), y.bfloat16(), c, ridge=0.1).dtype == torch.float32


@pytest.mark.parametrize("broken", ["features", "targets", "weights"])
def test_numbers_that_are_not_finite_are_reported_with_their_sample(broken: str) -> None:
    x, y, c = problem()
    {"features": x, "targets": y, "weights": c}[broken][1, 2] = float("nan")
    with pytest.raises(RunError, match="sample 1 of the batch"):
        weighted_ridge(x, y, c, ridge=0.1)


@pytest.mark.parametrize("scale", [2.0**17, 2.0**83])
def test_features_that_are_too_much_for_the_precision_are_not_called_infinite(scale: float) -> None:
    x, y, c = (part[:, :4] for part in problem(dtype=torch.float32))
    x[1], c[1] = scale, 1  # three columns that are one; powers of two, so that no rounding hides it
    with pytest.raises(RunError, match=r"sample 1 of the batch: .* too ill-conditioned for float32; normalise"):
        weighted_ridge(x, y, c, ridge=1e-3)
    x[0, 0, 0] = float("inf")  # the first thing to look for
    with pytest.raises(RunError, match=r"sample 0 of the batch: .* not finite"):
        weighted_ridge(x, y, c, ridge=1e-3)


def test_a_negative_weight_is_reported() -> None:
    x, y, c = problem()
    with pytest.raises(RunError, match=r"sample 0 of the batch: .* a weight is negative"):
        weighted_ridge(x, y, c * torch.tensor([[-100.0], [1.0]]), ridge=0.1)


@pytest.mark.parametrize("broken", ["features", "targets", "weights", "sign", "size"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_sample_without_a_solution_is_told_and_touches_no_other(broken: str, bias: bool) -> None:
    inputs = problem(dtype=torch.float32)
    x, y, c = (t.clone() for t in inputs)
    if broken == "size":
        x[1], c[1] = 2.0**20, 1  # all alike: the squares hide the ridge
    else:
        {"features": x, "targets": y, "weights": c, "sign": c}[broken][1, 2] = -100 if broken == "sign" else torch.inf
    leaves = [t.requires_grad_() for t in (x, y, c)]
    readout, solved = solve_ridge(*leaves, 0.1, bias)
    assert solved.tolist() == [True, False]
    assert readout[1].count_nonzero() == 0
    alone = [t[:1].clone().requires_grad_() for t in inputs]
    expected = weighted_ridge(*alone, 0.1, bias)
    torch.testing.assert_close(readout[:1], expected)
    gradients = torch.autograd.grad(readout.square().sum() + readout.sum(), leaves)
    wanted = torch.autograd.grad(expected.square().sum() + expected.sum(), alone)
    for got, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got[:1], right)
        assert got[1].count_nonzero() == 0


def test_it_is_not_differentiated_twice() -> None:
    inputs = [t.requires_grad_() for t in problem()]
    slopes = torch.autograd.grad(weighted_ridge(*inputs, 0.1).square().sum(), inputs, create_graph=True)
    for slope in slopes:
        with pytest.raises(RuntimeError, match="differentiate twice"):
            slope.sum().backward(retain_graph=True)


def test_the_column_of_ones_is_penalised_too() -> None:
    x, y, c = problem()
    ones = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    torch.testing.assert_close(weighted_ridge(x, y, c, 0.1, bias=True), weighted_ridge(ones, y, c, 0.1))


def test_tensors_on_a_cpu_go_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fourd_core.kernels.triton.ridge", None)  # whose import fails now
    x, y, c = problem()
    x.requires_grad_()
    weighted_ridge(x, y, c, 0.1).sum().backward()
    if choice.has_triton():
        with choice.using("triton"), pytest.raises(ImportError):
            weighted_ridge(x, y, c, 0.1)


@pytest.mark.parametrize("form", ["plain", "triton"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": torch.ones(7, 3)}, r"needs features 'b n d', targets 'b n k' .* got \(7, 3\), \(2, 7, 2\) and"),
        ({"features": torch.ones(2, 8, 3)}, r"got \(2, 8, 3\), \(2, 7, 2\) and \(2, 7\)"),
        ({"targets": torch.ones(2, 1, 2)}, r"got \(2, 7, 3\), \(2, 1, 2\) and"),
        ({"targets": torch.ones(1, 7, 2)}, r"got \(2, 7, 3\), \(1, 7, 2\) and"),
        ({"targets": torch.ones(2, 7)}, r"got \(2, 7, 3\), \(2, 7\) and"),
        ({"weights": torch.ones(1, 7)}, r"and \(1, 7\)"),
        ({"weights": torch.ones(2, 1)}, r"and \(2, 1\)"),
        ({"weights": torch.ones(2, 7, 1)}, r"and \(2, 7, 1\)"),
        ({"ridge": 0.0}, "ridge must be above 0 and finite, got 0.0"),
        ({"ridge": -1.0}, "ridge must be above 0"),
        ({"ridge": torch.inf}, "ridge must be above 0 and finite, got inf"),
        ({"ridge": torch.nan}, "ridge must be above 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named_before_a_kernel_reads_anything(
    change: dict[str, Any], sentence: str, form: choice.Form
) -> None:
    x, y, c = problem(dtype=torch.float32)
    given: dict[str, Any] = {"features": x, "targets": y, "weights": c, "ridge": 0.1} | change
    for solve in (solve_ridge, weighted_ridge):
        with choice.using(form), pytest.raises(ValueError, match=sentence):
            solve(**given)
