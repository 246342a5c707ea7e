"""Attention of one ViT-g layer by every backend that works here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import EAGER, OURS, SIMPLE, Case, Form, Inputs, Size
from benchmarks.straightforward import attention as straightforward
from fourd_core.kernels.attention import attention

SIZES = {"gpu": (1, 16, 2048, 88), "cpu": (1, 4, 1024, 88), "quick": (1, 2, 256, 88)}
"""Clips, heads, tokens and width of a head: 16 frames of 224 x 224 pixels."""
SDPA = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _by(backend: SDPBackend | None) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with nullcontext() if backend is None else sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def forms(device: torch.device) -> dict[str, Form]:
    """What is chosen, what torch would take, and each by name on a GPU."""
    found: dict[str, Form] = {OURS: attention, EAGER: _by(None)}
    if device.type == "cuda":
        found |= {name: _by(backend) for name, backend in SDPA.items()}
        found["xformers"] = partial(attention, backend="xformers")
    return found | {SIMPLE: straightforward.attention}


def cases(size: Size) -> Iterator[Case]:
    """Queries, keys and values are views of one product, as in the networks."""
    b, h, n, d = SIZES[size]
    dtype = torch.bfloat16 if size == "gpu" else torch.float32

    def inputs(g: torch.Generator) -> Inputs:
        qkv = torch.randn(b, n, 3, h, d, generator=g, device=g.device).to(dtype).permute(2, 0, 3, 1, 4)
        return dict(zip("qkv", qkv.unbind(0), strict=True))

    yield Case(
        name=f"{b} x {h} heads, {n} tokens of width {d}, {str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        forms=forms,
        gigabytes=4 * b * h * n * d * dtype.itemsize / 1e9,
        gigaflops=4 * b * h * n * n * d / 1e9,
        unit="bfloat16" if size == "gpu" else "float32",
        compiled=None,
    )
