"""Kernels are launched on the device of their tensors, whatever device is the current one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fourd_core.kernels.gradient_matching import matching
from fourd_core.kernels.linear_matching import linear_matching
from fourd_core.kernels.local_affinity import local_affinity, propagate
from fourd_core.kernels.map_readout import expected_position
from fourd_core.kernels.ridge import weighted_ridge

pytestmark = pytest.mark.usefixtures("triton")


def work(device: torch.device | str) -> list[Tensor]:
    """The gradients of every operation, and an average, which has none."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    rows, maps, readout = noise(2, 5, 3), noise(2, 3, 4, 5), noise(2, 4, 1)
    target, valid = noise(2, 1, 4, 5).detach(), torch.ones(2, 1, 4, 5, dtype=torch.bool, device=device)
    solved = weighted_ridge(rows, noise(2, 5, 2), noise(2, 5).detach().abs(), 0.1, bias=True)
    losses = matching(maps[:, :1], target, valid).loss + 2 * linear_matching(maps, readout, target, valid).loss
    positions = expected_position(maps, (6, 6))
    (losses + solved.square().sum() + positions.square().sum()).backward()
    averages = propagate(maps, local_affinity(maps, (1,), 0.05, 1e-5), (1,), 2)
    return [rows.grad, maps.grad, readout.grad, averages]


@pytest.mark.skipif(torch.cuda.is_available(), reason="watches the interpreter")
def test_every_launch_is_within_a_device_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import GridExecutor

    guards: list[Tensor] = []
    guarded: list[bool] = []
    launch = GridExecutor.__call__

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        guards.append(tensor)
        yield
        guards.pop()

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        guarded.append(bool(guards))
        launch(self, *args, **kwargs)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(GridExecutor, "__call__", watched)
    work("cpu")
    assert guarded == 14 * [True]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one() -> None:
    with torch.cuda.device(0):
        torch.testing.assert_close(work("cuda:1"), work("cuda:0"), check_device=False)
