"""Local affinity by Triton against its definition; compiled and exported, in both forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from torch import Tensor

from fourd_core.kernels.choice import using
from fourd_core.kernels.local_affinity import local_affinity, propagate

pytestmark = pytest.mark.usefixtures("triton")

SIGMA, EPS = 0.05, 1e-5


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def refined(maps: Tensor, guide: Tensor, dilations: tuple[int, ...], iterations: int = 2) -> tuple[Tensor, Tensor]:
    weights = local_affinity(guide, dilations, SIGMA, EPS)
    return weights, propagate(maps, weights, dilations, iterations)


def plain(maps: Tensor, guide: Tensor, dilations: tuple[int, ...], iterations: int = 2) -> tuple[Tensor, Tensor]:
    with using("plain"):
        return refined(maps, guide, dilations, iterations)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=some.sampled_from([(1, 3), (5, 1), (18, 2)]),
    size=some.sampled_from([(1, 6), (5, 7), (2, 2), (9, 1)]),
    dilations=some.sampled_from([(1,), (7, 2)]),
    iterations=some.integers(0, 2),
    layout=some.sampled_from(["rows", "channels last", "turned", "apart"]),
)
@example((5, 3), (5, 7), (1, 3, 5), 2, "apart")
def test_kernels_are_the_definition(
    device: torch.device,
    channels: tuple[int, int],
    size: tuple[int, int],
    dilations: tuple[int, ...],
    iterations: int,
    layout: str,
) -> None:
    def laid_out(maps: Tensor) -> Tensor:
        match layout:
            case "channels last":
                return maps.contiguous(memory_format=torch.channels_last)
            case "turned":
                return maps.mT.contiguous().mT
            case "apart":
                return torch.stack([maps, maps], -1)[..., 0]
        return maps

    maps, guide = (laid_out(noise(2, c, *size, seed=c).to(device)) for c in channels)
    wanted = plain(maps, guide, dilations, iterations)
    for found, right in zip(refined(maps, guide, dilations, iterations), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)
        assert found.stride() == right.stride()


def test_seven_samples_and_none(device: torch.device) -> None:
    maps, guide = noise(7, 3, 9, 8).to(device), noise(7, 1, 9, 8, seed=1).to(device)
    for found, right in zip(refined(maps, guide, (2,), 1), plain(maps, guide, (2,), 1), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)
    assert refined(maps[:0], guide[:0], (2,))[1].shape == (0, 3, 9, 8)


@pytest.mark.parametrize(("channels", "side"), [(3, 9), (80, 5)])
def test_several_programs_and_single_precision(device: torch.device, channels: int, side: int) -> None:
    """Of more pixels than one has, and of more channels; no round may read what it writes."""
    maps, guide = noise(1, channels, side, side).to(device), noise(1, 3, side, side, seed=1).to(device)
    found = refined(maps.float(), guide.float(), (1, 3), iterations=3)
    for mine, right in zip(found, plain(maps, guide, (1, 3), iterations=3), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=1e-5)


def test_weights_that_lie_otherwise_and_no_rounds(device: torch.device) -> None:
    maps, guide = noise(2, 3, 4, 5).to(device), noise(2, 1, 4, 5, seed=1).to(device)
    weights, right = plain(maps, guide, (1,), 1)
    turned = weights.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(propagate(maps, turned, (1,), 1), right, rtol=1e-12, atol=1e-14)
    assert torch.equal(propagate(maps, weights, (1,), 0), maps)


def test_the_first_authors_dilations(device: torch.device) -> None:
    maps, guide, dilations = noise(1, 2, 5, 30).to(device), noise(1, 1, 5, 30, seed=1).to(device), (1, 2, 4, 8, 12, 24)
    for found, right in zip(refined(maps, guide, dilations, 1), plain(maps, guide, dilations, 1), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)


def test_a_flat_guide_and_a_single_different_pixel(device: torch.device) -> None:
    guide = torch.full((1, 3, 6, 6), 0.3, device=device)
    assert torch.equal(local_affinity(guide, (1, 3), SIGMA, 1e-8), torch.full((1, 16, 6, 6), 1 / 16, device=device))
    guide[..., 2, 2] = 0.9
    weights = local_affinity(guide, (1, 3), SIGMA, 1e-8)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 6, 6, device=device))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
def test_half_precision(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """As of the same numbers in float32; the maps are rounded once, at the end."""
    guide, maps = noise(1, 3, 8, 8, dtype=dtype).to(device), noise(1, 4, 8, 8, seed=1, dtype=dtype).to(device)
    weights, found = refined(maps, guide, (1, 3), iterations=3)
    right_weights, right = plain(maps.float(), guide.float(), (1, 3), iterations=3)
    assert weights.dtype == torch.float32
    assert found.dtype == dtype
    torch.testing.assert_close(weights, right_weights, rtol=5e-5, atol=1e-7)
    torch.testing.assert_close(found.float(), right, rtol=0, atol=error)


def test_twice_the_same_bits_and_untouched_inputs(device: torch.device) -> None:
    maps = noise(1, 5, 9, 9, dtype=torch.float32).to(device).contiguous(memory_format=torch.channels_last)
    guide = noise(1, 3, 9, 9, seed=1, dtype=torch.float32).to(device).requires_grad_()
    before = maps.clone()
    first, second = (refined(maps, guide, (1, 3), iterations=3) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert torch.equal(maps, before)
    assert not first[0].requires_grad
    assert refined(maps, guide, (1, 3), iterations=0)[1].data_ptr() != maps.data_ptr()


class Refined(torch.nn.Module):
    def forward(self, maps: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        return refined(maps, guide, (1, 2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", ["plain", "triton"])
def test_compiled_and_exported(device: torch.device, form: str) -> None:
    maps, guide = noise(1, 2, 4, 5).to(device), noise(1, 3, 4, 5, seed=1).to(device)
    with using(form):
        wanted = refined(maps, guide, (1, 2))
        compiled = torch.compile(Refined(), backend="aot_eager", fullgraph=True)
        exported = torch.export.export(Refined(), (maps, guide))
        for other in (compiled, exported.module()):
            for found, right in zip(other(maps, guide), wanted, strict=True):
                torch.testing.assert_close(found, right)
    graphs = [str(part.graph) for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    assert any("fourd.propagate" in graph for graph in graphs) == (form == "triton")


@pytest.mark.usefixtures("unchecked")
def test_operators_keep_their_promises(device: torch.device) -> None:
    maps, guide = noise(1, 2, 4, 5).to(device), noise(1, 3, 4, 5, seed=1).to(device)
    weights, _ = refined(maps, guide, (1,))
    torch.library.opcheck(torch.ops.fourd.local_affinity.default, (guide, [1], SIGMA, EPS))
    torch.library.opcheck(torch.ops.fourd.propagate.default, (maps, weights, [1], 2))


def test_who_runs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By themselves the kernels are chosen on a GPU only."""
    from fourd_core.kernels.triton import local_affinity as kernels

    def refuse(*_: object) -> Tensor:
        raise AssertionError

    maps, guide = noise(1, 2, 4, 5).to(device), noise(1, 3, 4, 5).to(device)
    weights = local_affinity(guide, (1,), SIGMA, EPS)
    monkeypatch.setattr(kernels, "local_affinity", refuse)
    monkeypatch.setattr(kernels, "propagate", refuse)
    for call in (lambda: local_affinity(guide, (1,), SIGMA, EPS), lambda: propagate(maps, weights, (1,), 1)):
        with pytest.raises(AssertionError):
            call()
    with using("best"):
        refined(maps.cpu(), guide.cpu(), (1,))
