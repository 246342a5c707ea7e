"""Triton's kernels in its interpreter where there is no CUDA device, on the device where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from fourd_core.kernels import choice


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    """Triton's interpreter takes twice the time where covered lines are counted."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


@pytest.fixture
def device() -> torch.device:
    """Where kernels are tested: CUDA if there is some, else the CPU by way of the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def triton(device: torch.device) -> Iterator[None]:
    """Every operation runs its Triton kernel."""
    pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")
    with choice.using("triton"):
        yield
