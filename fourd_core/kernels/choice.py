"""Which form of an operation runs: its plain torch definition, or a Triton kernel that gives the same numbers faster.

Triton kernels run where all tensors are on one NVIDIA GPU, of the Ampere generation or later, and Triton is there;
everywhere else the definitions do, and for float64, which is for checks: torch's own products are made for it.
Tests run the kernels on a CPU in Triton's interpreter (`TRITON_INTERPRET=1` before triton is imported), a thousand
times slower than the definitions: so it is never chosen by itself. Triton launches on the current device, which need
not be the tensors' (`device = "cuda:1"`): kernels are called within `torch.cuda.device_of` one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Form = Literal["best", "plain", "triton"]
_form: Form = "best"
_INSTALLED = find_spec("triton") is not None
AMPERE = 8
"""Major compute capability. GPUs before have neither tf32 nor the shared memory that the kernels' tiles take."""


@contextmanager
def using(form: Form) -> Iterator[None]:
    """Within it, every operation runs in this form: for tests and measurements; one thread at a time.

    Args:
        form: "best" as described above; "plain" the definitions; "triton" the kernels, in the interpreter too.
    """
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def has_triton() -> bool:
    """Whether Triton is installed; it is not imported for that."""
    return _INSTALLED


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def by_triton(*tensors: Tensor | None) -> bool:
    """Whether a Triton kernel shall work on these tensors (those that are None do not count).

    Raises:
        RuntimeError: "triton" was asked for, and Triton is missing or cannot work on these tensors.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    on_gpu = all(tensor.is_cuda and tensor.device == present[0].device for tensor in present)
    if _form == "plain":
        return False
    if _form == "best":
        return on_gpu and has_triton() and not interpreted() and _made_for(present)
    if not has_triton():
        raise RuntimeError('using("triton"), but triton is not installed: pip install triton')
    if not on_gpu and not interpreted():
        raise RuntimeError(
            'using("triton"), but the tensors are not on one GPU; on the CPU set TRITON_INTERPRET=1 before the start'
        )
    return True


def _made_for(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels are made for such tensors and their GPU."""
    if torch.version.hip is not None or any(tensor.dtype == torch.float64 for tensor in tensors):
        return False
    return all(torch.cuda.get_device_properties(tensor.device).major >= AMPERE for tensor in tensors[:1])
